from __future__ import annotations

import pytest
import torch

from nemo_merge import merge_state_dicts, methods
from nemo_merge.checkpoints import StateDictCheckpoint, open_checkpoint
from nemo_merge.errors import ConfigError, PlanError
from nemo_merge.merging import Treatment, plan_merge, plan_table
from tests.fixtures.models import CONFIG, family, write_nemo

NAME = "encoder.layers.0.self_attn.linear_q.weight"


def plan(base, experts, method="tsvm", **options):
    return plan_merge(
        StateDictCheckpoint(base, "base") if base is not None else None,
        [StateDictCheckpoint(expert, f"expert {index}") for index, expert in enumerate(experts)],
        methods.get(method),
        **options,
    )


def problems(base, experts, method="soup", **options) -> list[str]:
    with pytest.raises(PlanError) as caught:
        plan(base, experts, method, **options)
    return caught.value.problems


def test_treatments_by_role(family):
    treatments = {row.name: row.treatment for row in plan(*family).rows}
    expected = {
        "preprocessor.featurizer.window": Treatment.COPY,
        "preprocessor.featurizer.fb": Treatment.COPY,
        "encoder.pre_encode.conv.0.weight": Treatment.MEAN,
        "encoder.pre_encode.conv.3.weight": Treatment.METHOD,
        "encoder.layers.0.feed_forward1.linear1.weight": Treatment.METHOD,
        "encoder.layers.0.self_attn.pos_bias_u": Treatment.MEAN,
        "encoder.layers.0.conv.pointwise_conv1.weight": Treatment.METHOD,
        "encoder.layers.0.conv.depthwise_conv.weight": Treatment.MEAN,
        "encoder.layers.0.conv.batch_norm.weight": Treatment.MEAN,
        "encoder.layers.0.conv.batch_norm.running_mean": Treatment.AVERAGE,
        "encoder.layers.0.conv.batch_norm.running_var": Treatment.AVERAGE,
        "encoder.layers.0.conv.batch_norm.num_batches_tracked": Treatment.COPY,
        "decoder.decoder_layers.0.weight": Treatment.MEAN,
    }
    assert {name: treatments[name] for name in expected} == expected
    elementwise = {row.name: row.treatment for row in plan(*family, "ties").rows}
    assert elementwise["encoder.layers.0.conv.depthwise_conv.weight"] is Treatment.METHOD
    assert elementwise["encoder.layers.0.conv.batch_norm.running_var"] is Treatment.AVERAGE


def test_what_no_expert_changed_is_copied(family):
    base, experts = family
    for expert in experts:
        expert[NAME] = base[NAME].clone()
    row = next(row for row in plan(base, experts).rows if row.name == NAME)
    assert (row.treatment, row.reason) == (Treatment.COPY, "the same in all models")


def test_all_problems_are_reported_at_once(family):
    base, (first, second, third) = family
    del first[NAME]
    first["surprise"] = torch.ones(2)
    second[NAME] = torch.randn(3, 3)
    second["decoder.decoder_layers.0.bias"][1] = float("nan")
    third["encoder.layers.0.conv.batch_norm.running_var"][0] = -1
    third["preprocessor.featurizer.window"] = torch.ones(16)
    found = problems(base, [first, second, third])
    assert [text.split(":")[0] for text in found] == [
        "expert 0",
        "expert 0",
        "expert 1",
        "expert 2",
        "expert 2",
        "expert 1",
    ]
    for text, fragment in zip(
        found,
        [f"tensor {NAME!r} is missing", "'surprise' is not in base", "[3, 3] instead of [12, 12]", "the models hear other features", "negative variances", "1 values that are NaN"],
        strict=True,
    ):  # fmt: skip
        assert fragment in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("who", ["base", "expert"])
def test_values_that_are_not_finite(family, value, who):
    base, experts = family
    (base if who == "base" else experts[1])[NAME][2, 3] = value
    (found,) = problems(base, experts)
    assert f"tensor {NAME!r} holds 1 values that are NaN or infinite" in found


def test_large_values_that_only_overflow_their_sum_are_fine(family):
    base, experts = family
    base[NAME] = torch.full((12, 12), 1e38)
    plan(base, experts)


def test_kinds_of_type_must_agree(family):
    base, experts = family
    experts[0][NAME] = experts[0][NAME].to(torch.int32)
    (found,) = problems(base, experts)
    assert "another kind of type" in found


def test_models_that_cannot_be_told_apart_by_shape(tmp_path):
    base, (expert, *_) = family_of_three()
    reference = open_checkpoint(write_nemo(tmp_path / "base.nemo", base))
    cases = {
        "target": ({**CONFIG, "target": "nemo.Other"}, "is a nemo.Other"),
        "labels": ({**CONFIG, "labels": [" ", "a", "b", "d"]}, "tokenizer differs"),
        "heads": ({**CONFIG, "encoder": {"n_heads": 4}}, "encoder.n_heads=4"),
        "rate": ({**CONFIG, "sample_rate": 8000}, "sample_rate=8000"),
    }
    for name, (config, fragment) in cases.items():
        other = open_checkpoint(write_nemo(tmp_path / f"{name}.nemo", expert, config))
        with pytest.raises(PlanError) as caught:
            plan_merge(reference, [other], methods.get("soup"))
        assert len(caught.value.problems) == 1
        assert fragment in caught.value.problems[0]
        assert f"{name}.nemo" in caught.value.problems[0]


def test_a_tie_that_an_expert_broke(family):
    base, experts = family
    base["tied"] = base[NAME]
    for expert in experts:
        expert["tied"] = expert[NAME]
    assert plan(base, experts).ties == {"tied": NAME}
    experts[0]["tied"] = experts[0][NAME].clone()
    plan(base, experts)  # a copy with the same values is no contradiction
    experts[0]["tied"] = experts[0]["tied"] + 1
    (found,) = problems(base, experts)
    assert "'tied'" in found
    assert "base ties them" in found


def test_complex_weights_are_refused():
    base = {"w": torch.ones(2, dtype=torch.complex64)}
    assert "complex" in problems(base, [base])[0]


def test_too_few_experts_and_a_missing_base(family):
    base, experts = family
    assert "needs 1 or more experts" in problems(base, [])[0]
    assert "needs a base" in problems(None, experts, "ties")[0]
    with pytest.raises(PlanError, match="needs a base"):
        merge_state_dicts(None, experts, "soup", scale=0.5)


@pytest.mark.parametrize(("option", "value"), [("batch_norm", "averge"), ("dtype", "float31")])
def test_options_that_do_not_exist(family, option, value):
    with pytest.raises(ConfigError, match=f"{option}='{value}' does not exist; did you mean"):
        plan(*family, **{option: value})


def test_experts_without_changes_are_worth_a_warning(family):
    base, _ = family
    assert "no expert differs" in plan(base, [base]).warnings[0]


def test_the_table_shows_every_tensor(family):
    base, experts = family
    assert plan_table(plan(base, experts)).row_count == len(base)


def family_of_three():
    return family()


def test_decisions_count_every_tensor(family):
    base, experts = family
    counted = sum(count for roles in plan(base, experts).decisions().values() for count in roles.values())
    assert counted == len(base)
