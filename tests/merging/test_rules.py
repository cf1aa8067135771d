from __future__ import annotations

import pytest
import torch

from nemo_merge import merge, merge_state_dicts, methods, open_checkpoint
from nemo_merge.errors import ConfigError, PlanError
from nemo_merge.merging import parse_rules
from tests.fixtures.models import family, same, state_dict

MATRIX = "encoder.layers.0.feed_forward1.linear1.weight"
HEAD = "decoder.decoder_layers.0.weight"
MAIN = methods.get("task_arithmetic")


def deep_family(layers: int = 3):
    """A base and two experts with several encoder and decoder layers."""
    generator = torch.Generator().manual_seed(1)
    names = [f"{part}.layers.{layer}.linear.weight" for part in ("encoder", "decoder") for layer in range(layers)]
    names += ["encoder.pre_encode.out.weight", "lm_head.weight"]
    base = {name: torch.randn(6, 5, generator=generator) for name in names}
    return base, [{name: base[name] + 0.1 * torch.randn(6, 5, generator=generator) for name in names} for _ in range(2)]


def test_the_first_rule_that_matches_decides():
    base, experts = family()
    rules = [
        {"match": r"linear1\.weight$", "method": {"name": "ties", "density": 0.5}, "scale": 2.0},
        {"group": "encoder", "weights": [1, 0, 0], "scale": 1.0},
        {"group": "head", "method": "base"},
    ]
    result = merge_state_dicts(base, experts, "tsvm", rules=rules)
    assert torch.equal(result[MATRIX], merge_state_dicts(base, experts, "ties", scale=2.0, density=0.5)[MATRIX])
    name = "encoder.layers.0.self_attn.linear_q.weight"
    assert torch.equal(result[name], merge_state_dicts(base, experts, "tsvm", [1, 0, 0], 1.0)[name])
    assert torch.equal(result[HEAD], base[HEAD])


def test_leaving_everything_else_at_the_base():
    base, experts = family()
    rules = [{"match": "feed_forward1", "method": "soup"}, {"match": "", "method": "base"}]
    result = merge_state_dicts(base, experts, "task_arithmetic", rules=rules)
    assert {name for name in base if not torch.equal(result[name], base[name])} == {MATRIX, MATRIX[:-6] + "bias"}


def test_rules_without_effect_change_nothing():
    base, experts = family()
    rules = [{"group": "encoder"}, {"match": "decoder"}]
    assert same(merge_state_dicts(base, experts, "boosted_tsvm", rules=rules), merge_state_dicts(base, experts))


def test_weights_along_the_depth():
    base, experts = deep_family()
    rules = [{"match": "", "weights": [[1, 0], [0, 1]], "scale": 1.0}]
    result = merge_state_dicts(base, experts, "task_arithmetic", rules=rules)
    first, last = experts
    for part in ("encoder", "decoder"):
        for layer, share in enumerate((0.0, 0.5, 1.0)):
            name = f"{part}.layers.{layer}.linear.weight"
            expected = base[name] + (1 - share) * (first[name] - base[name]) + share * (last[name] - base[name])
            torch.testing.assert_close(result[name], expected)
    torch.testing.assert_close(result["encoder.pre_encode.out.weight"], first["encoder.pre_encode.out.weight"])
    torch.testing.assert_close(result["lm_head.weight"], last["lm_head.weight"])


def test_three_values_along_the_depth_are_a_curve():
    base, experts = deep_family(5)
    rules = [{"group": "encoder", "weights": [[0, 1, 0], 0], "scale": 1.0}, {"match": "", "method": "base"}]
    result = merge_state_dicts(base, experts, "task_arithmetic", rules=rules)
    shares = [0.0, 0.5, 1.0, 0.5, 0.0]
    for layer, share in enumerate(shares):
        name = f"encoder.layers.{layer}.linear.weight"
        torch.testing.assert_close(result[name], base[name] + share * (experts[0][name] - base[name]))


def test_what_no_rule_matches_is_reported(nemo_family, tmp_path):
    base, experts = nemo_family
    rules = [{"group": "encoder", "scale": 0.5}]
    report = merge(base, experts, "ties", output=tmp_path / "m.nemo", rules=rules)
    (warning,) = [text for text in report.warnings if "no rule" in text]
    assert warning.startswith("2 tensors match no rule and are merged by ties: decoder.decoder_layers.0.")
    record = open_checkpoint(tmp_path / "m.nemo").metadata.provenance
    assert record["rules"] == [
        {"group": "encoder", "method": {**record["method"], "scale": 0.5}},
    ]


def test_a_rule_with_scope_model_counts_over_the_tensors_it_matches():
    base, experts = family()
    rules = [{"group": "encoder", "method": {"name": "ties", "scope": "model", "density": 0.3}}]
    result = merge_state_dicts(base, experts, "task_arithmetic", rules=rules)
    only = {name: tensor for name, tensor in base.items() if name.startswith("encoder")}
    part = merge_state_dicts(
        only, [{name: e[name] for name in only} for e in experts], "ties", scope="model", density=0.3
    )
    assert torch.equal(result[MATRIX], part[MATRIX])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"mach": "x"}, "rule 1: there is no key 'mach'; did you mean 'match'"),
        ({"scale": 1.0}, "says neither match"),
        ({"group": "encodr"}, "no group 'encodr'; did you mean 'encoder'"),
        ({"match": "("}, "is not a regular expression"),
        ({"match": "x", "method": "tie"}, "no merging method 'tie'; did you mean 'ties'"),
        ({"match": "x", "method": {"name": "ties", "density": 7}}, "out of range"),
        ({"match": "x", "method": 3}, "neither a name nor a mapping"),
        ({"match": "x", "method": "base", "scale": 1.0}, "takes neither scale nor weights"),
        ({"match": "x", "weights": [1]}, "not a list with one entry for each of the 3 experts"),
        ({"match": "x", "weights": ["a", 1, 1]}, "'a' is neither a number"),
        ({"match": "x", "weights": [[], 1, 1]}, "neither a number nor a list"),
        ({"match": "x", "method": {"name": "ties", "scope": "model"}, "weights": [[0, 1], 1, 1]}, "exclude each other"),
        ("encoder", "is not a mapping"),
    ],
)
def test_wrong_rules_are_refused_with_the_remedy(rule, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        parse_rules([rule], MAIN, 3)


def test_a_rule_that_matches_nothing_is_a_problem():
    base, experts = family()
    with pytest.raises(PlanError, match=r"rule 1 \(match=encodr\) matches no tensor"):
        merge_state_dicts(base, experts, "ties", rules=[{"match": "encodr", "scale": 0.5}])


def test_a_method_of_a_rule_that_needs_other_experts_is_a_problem():
    with pytest.raises(PlanError, match="slerp takes 2 experts at most"):
        merge_state_dicts(state_dict(), family()[1], "ties", rules=[{"group": "encoder", "method": "slerp"}])
