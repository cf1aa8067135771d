"""Post-processors: what they do to the task vector that a method gave."""

from __future__ import annotations

import pytest
import torch

from nemo_merge import merge, methods, open_checkpoint
from nemo_merge.errors import ConfigError
from nemo_merge.methods import Method
from tests.fixtures.models import family, same
from tests.fixtures.posteriors import merge_state_dicts
from tests.merging.test_rules import deep_family


def ratios(result, plain, base) -> dict[str, float]:
    return {name: float((result[name] - base[name]).norm() / (plain[name] - base[name]).norm()) for name in base}


def test_lines_rises_with_depth_in_each_stack():
    base, experts = deep_family()
    plain = merge_state_dicts(base, experts, "ties")
    result = merge_state_dicts(base, experts, "ties", then=[{"name": "lines", "alpha": 0.4, "beta": 0.6}])
    found = ratios(result, plain, base)
    for part in ("encoder", "decoder"):
        for layer, factor in enumerate((0.4, 0.7, 1.0)):
            assert found[f"{part}.layers.{layer}.linear.weight"] == pytest.approx(factor, rel=1e-4)
    assert found["encoder.pre_encode.out.weight"] == pytest.approx(0.4, rel=1e-4)


def test_lines_over_concatenated_stacks():
    base, experts = deep_family()
    plain = merge_state_dicts(base, experts, "soup")
    then = [{"name": "lines", "alpha": 0.0, "beta": 1.0, "stacks": "concatenated"}]
    found = ratios(merge_state_dicts(base, experts, "soup", then=then), plain, base)
    for index, name in enumerate(
        f"{part}.layers.{n}.linear.weight" for part in ("encoder", "decoder") for n in range(3)
    ):
        assert found[name] == pytest.approx(index / 5, abs=1e-4)


@pytest.mark.parametrize("method", ["task_arithmetic", "soup"])
def test_lines_starts_at_the_mean_by_itself(method):
    base, experts = deep_family()
    plain = merge_state_dicts(base, experts, method)
    found = ratios(merge_state_dicts(base, experts, method, then=[{"name": "lines", "beta": 0.0}]), plain, base)
    assert all(factor == pytest.approx(1.0, rel=1e-4) for factor in found.values())


def test_lines_takes_its_start_from_the_norms_of_the_whole_model():
    base, experts = deep_family()
    plain = merge_state_dicts(base, experts, "ties", scale=0.7)
    total = sum(float(sum(expert[name] - base[name] for expert in experts).abs().sum()) for name in base)
    change = sum(float((plain[name] - base[name]).abs().sum()) for name in base)
    then = [{"name": "lines", "beta": 0.0}]
    found = ratios(merge_state_dicts(base, experts, "ties", scale=0.7, then=then), plain, base)
    assert found["encoder.layers.0.linear.weight"] == pytest.approx(total / change / 2, rel=1e-4)


def test_subspace_boost_raises_weak_singular_values_of_matrices_only():
    base, experts = family()
    name, vector = "encoder.layers.0.self_attn.linear_q.weight", "encoder.layers.0.conv.batch_norm.weight"
    plain = merge_state_dicts(base, experts, "task_arithmetic")
    result = merge_state_dicts(base, experts, "task_arithmetic", then=[{"name": "subspace_boost", "beta": 0.3}])
    s = torch.linalg.svdvals((plain[name] - base[name]).double())
    level = s[int((s.cumsum(0) / s.sum() < 0.3).sum())]
    boosted = torch.linalg.svdvals((result[name] - base[name]).double())
    torch.testing.assert_close(boosted, s.clamp_min(level), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(result[vector], plain[vector])


@pytest.mark.parametrize("method", methods.names())
def test_chains_after_any_method(method):
    base, experts = family()
    experts = experts[: methods.method_class(method).maximum_experts or 3]
    nothing = [{"name": "subspace_boost", "beta": 1.0}, {"name": "lines", "alpha": 1.0, "beta": 0.0}]
    plain, result = (merge_state_dicts(base, experts, method, then=then) for then in ((), nothing))
    for name in base:
        torch.testing.assert_close(result[name], plain[name], rtol=1e-5, atol=1e-6)
    assert not same(merge_state_dicts(base, experts, method, then=["lines", "subspace_boost"]), plain)


def test_the_record_names_them(nemo_family, tmp_path):
    base, experts = nemo_family
    merge(base, experts, "ties", output=tmp_path / "m.nemo", then=["lines"], workers=1)
    record = open_checkpoint(tmp_path / "m.nemo").metadata.provenance
    assert record["then"] == [{"name": "lines", "alpha": None, "beta": 0.5, "stacks": "separate"}]
    first = (tmp_path / "m.nemo").read_bytes()
    merge(base, experts, "ties", output=tmp_path / "n.nemo", then=["lines"], workers=4)
    assert (tmp_path / "n.nemo").read_bytes() == first


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (["line"], "no post-processor 'line'; did you mean 'lines'"),
        ([{"name": "lines", "alfa": 1.0}], "'lines' has no parameter 'alfa'; did you mean 'alpha'"),
        ([{"name": "lines", "alpha": -1.0}], "out of range"),
        ([{"alpha": 1.0}], "neither the name"),
        ([3], "neither the name"),
    ],
)
def test_wrong_ones_are_refused(then, message):
    base, experts = family()
    with pytest.raises(ConfigError, match=message):
        merge_state_dicts(base, experts, "ties", then=then)


def test_every_post_processor_is_documented():
    for name in methods.post_names():
        cls = methods.post_class(name)
        assert "arXiv" in (cls.__doc__ or "")
        assert cls.source
        assert not issubclass(cls, Method)
