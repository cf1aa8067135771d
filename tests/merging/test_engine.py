from __future__ import annotations

import pytest
import torch

from nemo_merge import merge, merge_state_dicts
from nemo_merge.errors import MergeError
from nemo_merge.merging import blocks
from tests.fixtures.models import family, same, write_nemo

MEAN = "encoder.layers.0.conv.batch_norm.running_mean"
VARIANCE = "encoder.layers.0.conv.batch_norm.running_var"


@pytest.mark.parametrize("method", ["ties", "task_arithmetic", "soup", "tsvm"])
def test_the_size_of_blocks_does_not_matter(family, method, monkeypatch):
    whole = merge_state_dicts(*family, method)
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 7)
    assert same(merge_state_dicts(*family, method), whole)


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("method", ["boosted_tsvm", "ties"])
def test_the_bytes_of_the_file_do_not_depend_on_the_number_of_workers(nemo_family, tmp_path, workers, method):
    base, experts = nemo_family
    merge(base, experts, method, output=tmp_path / "one.nemo", workers=1)
    merge(base, experts, method, output=tmp_path / "more.nemo", workers=workers)
    assert (tmp_path / "one.nemo").read_bytes() == (tmp_path / "more.nemo").read_bytes()


def test_torch_threads_are_left_as_they_were(family):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        merge_state_dicts(*family, "tsvm")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_statistics_are_averaged_and_variances_stay_positive():
    base, experts = family(size=3.0)  # arithmetic on these variances would turn negative
    naive = base[VARIANCE] + sum(expert[VARIANCE] - base[VARIANCE] for expert in experts)
    assert bool((naive < 0).any())
    merged = merge_state_dicts(base, experts, "task_arithmetic", scale=1.0)
    for name in (MEAN, VARIANCE):
        torch.testing.assert_close(merged[name], torch.stack([expert[name] for expert in experts]).mean(0))
    assert bool((merged[VARIANCE] > 0).all())


def test_pooled_statistics_are_those_of_the_pooled_data():
    data = [torch.randn(500, 12) * scale + shift for scale, shift in ((1.0, 0.0), (2.0, 3.0), (0.5, -1.0))]
    base, experts = family()
    for expert, samples in zip(experts, data, strict=True):
        expert[MEAN], expert[VARIANCE] = samples.mean(0), samples.var(0, correction=0)
    merged = merge_state_dicts(base, experts, "soup", batch_norm="pooled")
    pooled = torch.cat(data)
    torch.testing.assert_close(merged[MEAN], pooled.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(merged[VARIANCE], pooled.var(0, correction=0), rtol=1e-5, atol=1e-6)


def test_weights_are_shares_of_the_statistics():
    base, experts = family(2)
    merged = merge_state_dicts(base, experts, "soup", weights=[3, 1])
    torch.testing.assert_close(merged[MEAN], 0.75 * experts[0][MEAN] + 0.25 * experts[1][MEAN])
    kept = merge_state_dicts(base, experts, "soup", batch_norm="base")
    assert torch.equal(kept[MEAN], base[MEAN])
    assert torch.equal(kept[VARIANCE], base[VARIANCE])


def test_counters_and_preprocessor_are_copied(family):
    base, experts = family
    merged = merge_state_dicts(base, experts, "task_arithmetic")
    for name in ("encoder.layers.0.conv.batch_norm.num_batches_tracked", "preprocessor.featurizer.window"):
        assert torch.equal(merged[name], base[name])
        assert merged[name].dtype == base[name].dtype


def test_a_result_that_does_not_fit_is_never_written(tmp_path):
    base, experts = family(2)
    half = [{name: t.half() if t.is_floating_point() else t for name, t in model.items()} for model in (base, *experts)]
    paths = [write_nemo(tmp_path / f"{index}.nemo", model) for index, model in enumerate(half)]
    with pytest.raises(MergeError, match=r"do not fit into float16.*smaller scale or dtype=float32"):
        merge(paths[0], paths[1:], "task_arithmetic", output=tmp_path / "out.nemo", scale=1e9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.nemo", "1.nemo", "2.nemo"]


def test_a_negative_variance_is_never_written(monkeypatch, family):
    """Whatever a method or a policy comes up with, the check stands between it and the file."""
    from nemo_merge.merging import combine

    monkeypatch.setattr(combine, "_average_statistics", lambda *_: lambda block: -block.base)
    with pytest.raises(MergeError, match="negative variance"):
        merge_state_dicts(*family, "soup")


def test_sixteen_bit_bases_and_the_warning_about_rounding(tmp_path):
    base, experts = family(size=1e-5)
    half = {name: t.half() if t.is_floating_point() else t for name, t in base.items()}
    exact = [{name: half[name].float() + (expert[name] - base[name]) if t.is_floating_point() else t for name, t in expert.items()} for expert in experts]  # fmt: skip
    for expert in exact:
        expert["preprocessor.featurizer.window"] = half["preprocessor.featurizer.window"].float()
        expert["preprocessor.featurizer.fb"] = half["preprocessor.featurizer.fb"].float()
        expert[VARIANCE] = expert[VARIANCE].abs()
    base_path = write_nemo(tmp_path / "base.nemo", half)
    paths = [write_nemo(tmp_path / f"{index}.nemo", expert) for index, expert in enumerate(exact)]
    report = merge(base_path, paths, "task_arithmetic", output=tmp_path / "half.nemo")
    assert "rounding to float16 loses" in report.warnings[0]
    assert "dtype=float32" in report.warnings[0]
    report = merge(base_path, paths, "task_arithmetic", output=tmp_path / "full.nemo", dtype="float32")
    assert not report.warnings
    from nemo_merge import open_checkpoint

    assert {
        spec.dtype for name, spec in open_checkpoint(tmp_path / "half.nemo").specs.items() if "tracked" not in name
    } == {torch.float16}
    full = open_checkpoint(tmp_path / "full.nemo")
    name = "encoder.layers.0.self_attn.linear_q.weight"
    assert full.specs[name].dtype is torch.float32
    mean = torch.stack([expert[name] - half[name].float() for expert in exact]).mean(0)
    torch.testing.assert_close(full[name] - half[name].float(), mean, rtol=1e-2, atol=1e-8)


def test_ties_and_other_objects_of_a_state_dict_survive(family):
    base, experts = family
    name = "decoder.decoder_layers.0.bias"
    for model in (base, *experts):
        model["tied"] = model[name]
    base["extra_state"] = {"anything": 1}  # type: ignore[assignment]
    merged = merge_state_dicts(base, experts, "soup")
    assert merged["tied"] is merged[name]
    assert merged["extra_state"] == {"anything": 1}
    assert list(merged) == list(base)
