"""How far fine-tuning moved the weights, on tensors made by hand."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from nemo_merge.reporting.weights import change_of, small_factors

BASE = {
    "encoder.layers.0.linear.weight": torch.full((4, 5), 2.0),
    "encoder.layers.1.linear.weight": torch.full((4, 5), 2.0),
    "encoder.layers.0.norm.weight": torch.ones(4),
}


@pytest.fixture
def models(tmp_path):
    def write(name, tensors):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "x"}))
        save_file(tensors, folder / "model.safetensors")
        return folder

    changed = {name: tensor.clone() for name, tensor in BASE.items()}
    changed["encoder.layers.0.linear.weight"][0] += 0.1  # 5 of 20 entries
    changed["encoder.layers.0.linear.weight"][1] += 0.0005
    changed["encoder.layers.0.norm.weight"] += 9  # a vector: not counted
    return write("base", BASE), write("changed", changed)


def test_the_change_of_matrices(models):
    base, changed = models
    found = change_of(changed, base)
    assert found["relative"] == pytest.approx((5 * (0.01 + 0.0005**2) / (40 * 4)) ** 0.5, rel=1e-5)
    assert found["small"] == pytest.approx(15 / 20)  # of the matrix that changed


def test_no_change(models):
    base, _ = models
    assert change_of(base, base) == {"relative": 0.0, "small": 1.0}


def test_small_entries_of_factors_are_those_of_means(tmp_path):
    prefix = "base_model.model.encoder.layers.0.linear"
    tensors = {
        f"{prefix}.lora_A.weight": torch.tensor([[0.5, 1e-4, -2e-3, -1e-4]]),
        f"{prefix}.lora_B.weight": torch.zeros(4, 1),
        f"{prefix}.lora_rho_A": torch.full((1, 4), -5.0),
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert small_factors(tmp_path) == pytest.approx(6 / 8)
