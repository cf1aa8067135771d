"""Measures of an adapter against dense computation."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import softplus

from nemo_merge.adapters import diagnose, inject_lora
from tests.fixtures.lora import QV, Net, bayesian


@pytest.mark.parametrize("sigma_b", [0.01, "deterministic"])
def test_measures_are_those_of_the_dense_change(sigma_b):
    net = bayesian(shake=0.02, sigma_b=sigma_b)
    rows = diagnose(net, tau=0.01)
    assert list(rows) == [f"layers.{index}.linear_{part}" for index in (0, 1) for part in "qv"]
    for name, row in rows.items():
        layer = net.get_submodule(name)
        change = layer.get_delta_weight("default").detach().double()
        singular = torch.linalg.svdvals(change)
        expected = {
            "small_a": (layer.lora_A["default"].weight.abs() < 0.01).double().mean(),
            "small_b": (layer.lora_B["default"].weight.abs() < 0.01).double().mean(),
            "small_delta": (change.abs() < 0.01).double().mean(),
            "relative_norm": change.norm() / layer.base_layer.weight.double().norm(),
            "stable_rank": (singular / singular[0]).square().sum(),
            "log_sigma_a": softplus(layer.lora_rho_A["default"]).mean().log(),
        }
        if sigma_b == 0.01:
            expected["log_sigma_b"] = torch.tensor(0.01).log()
        assert row == pytest.approx({key: float(value.detach()) for key, value in expected.items()}, rel=1e-5)


def test_no_change_at_all():
    net = Net()
    inject_lora(net, r=2, target_modules=QV)
    for row in diagnose(net).values():
        assert row["relative_norm"] == row["stable_rank"] == 0
        assert row["small_delta"] == row["small_b"] == 1
        assert "log_sigma_a" not in row
