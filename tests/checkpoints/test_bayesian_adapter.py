"""Reading Bayesian LoRA: means, spreads and what does not fit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_merge import open_checkpoint
from nemo_merge.checkpoints import AdapterCheckpoint, StateDictCheckpoint
from nemo_merge.errors import CheckpointError
from tests.fixtures.posteriors import bayesian_folder

SHAPES = {"a": (6, 4), "b": (5, 3, 2)}


@pytest.fixture
def folder(tmp_path):
    factors = {
        "a": (torch.randn(6, 2), torch.randn(2, 4)),
        "b": (torch.randn(5, 3, 1), torch.randn(3, 3, 2)),
    }
    return bayesian_folder(tmp_path / "adapter", factors, alpha=4)


@pytest.fixture
def base():
    return StateDictCheckpoint({"a.weight": torch.randn(6, 4), "b.weight": torch.randn(5, 3, 2), "c": torch.ones(7)})


def change(folder, **tensors):
    """Replaces tensors of the file, or removes those that are None."""
    held = load_file(folder / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        held["base_model.model." + name.replace("__", ".")] = tensor
    save_file({name: tensor for name, tensor in held.items() if tensor is not None}, folder / "adapter_model.safetensors")  # fmt: skip


def test_the_means_are_the_expert(folder, base):
    with open_checkpoint(folder) as adapter:
        assert adapter.metadata.model_class == "Bayesian LORA adapter"
        assert adapter.metadata.config["posterior"] == {"prior_scale": 0.01}
        expert = adapter.bind(base)
        tensors = load_file(folder / "adapter_model.safetensors")
    b, a = (tensors[f"base_model.model.a.lora_{part}.weight"].double() for part in "BA")
    torch.testing.assert_close(expert["a.weight"].double(), base["a.weight"].double() + 4 / 2 * b @ a)


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
def test_names_with_the_adapter_in_them(folder, base, prefix):
    held = load_file(folder / "adapter_model.safetensors")
    renamed = {}
    for name, tensor in held.items():
        short = prefix + name.removeprefix("base_model.model.")
        stem = short.removesuffix(".weight")
        renamed[f"{stem}.default" + ("" if "rho" in name else ".weight")] = tensor
    first = AdapterCheckpoint(folder).bind(base).posterior("a.weight").variances_like(base["a.weight"])
    save_file(renamed, folder / "adapter_model.safetensors")
    again = AdapterCheckpoint(folder).bind(base).posterior("a.weight").variances_like(base["a.weight"])
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", ["a", "b"])
def test_posteriors_come_by_rows(folder, base, name):
    posterior = AdapterCheckpoint(folder).bind(base).posterior(f"{name}.weight")
    like = base[f"{name}.weight"].double()
    whole = posterior.variances_like(like)
    assert whole.shape == SHAPES[name]
    assert bool((whole > 0).all())
    parts = [posterior[slice(first, first + 2)].variances_like(like[first : first + 2]) for first in range(0, len(like), 2)]  # fmt: skip
    torch.testing.assert_close(torch.cat(parts), whole)


def test_transposed_layers(folder, tmp_path):
    factors = {"a": (torch.randn(6, 2), torch.randn(2, 4))}
    plain = bayesian_folder(tmp_path / "plain", factors)
    turned = bayesian_folder(tmp_path / "turned", factors, fan_in_fan_out=True)
    one = AdapterCheckpoint(plain).bind(StateDictCheckpoint({"a.weight": torch.zeros(6, 4)})).posterior("a.weight")
    other = AdapterCheckpoint(turned).bind(StateDictCheckpoint({"a.weight": torch.zeros(4, 6)})).posterior("a.weight")
    torch.testing.assert_close(other.variance.rows(), one.variance.rows().mT)
    torch.testing.assert_close(other.prior.rows(), one.prior.rows().mT)


def test_what_is_not_adapted_says_nothing(folder, base):
    expert = AdapterCheckpoint(folder).bind(base)
    assert expert.posterior("c").variances_like(base["c"]).tolist() == [torch.inf] * 7


def test_an_adapter_of_float64_is_not_changed_by_reading_it(tmp_path):
    factors = {"a": (torch.randn(6, 2).double(), torch.randn(2, 4).double())}
    expert = AdapterCheckpoint(bayesian_folder(tmp_path / "x", factors, alpha=6)).bind(
        StateDictCheckpoint({"a.weight": torch.zeros(6, 4).double()})
    )
    first = expert["a.weight"]
    assert torch.equal(expert["a.weight"], first)
    torch.testing.assert_close(first, 3 * factors["a"][0] @ factors["a"][1])


WRONG = {
    "another shape": ({"a__lora_rho_A": torch.zeros(2, 5)}, r"'base_model.model.a.lora_rho_A' is \[2, 5\], but the means"),
    "another rank": ({"a__lora_rho_B": torch.zeros(6, 3)}, r"lora_rho_B' is \[6, 3\]"),
    "half a posterior": ({"b__lora_rho_A": None}, "'b' has .*lora_rho_B' but no lora_rho_A"),
    "not finite": ({"a__lora_rho_A": torch.full((2, 4), torch.nan)}, "lora_rho_A' holds values that are NaN"),
    "whole numbers": ({"a__lora_rho_A": torch.zeros(2, 4, dtype=torch.int64)}, "not a floating-point type"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_spreads_that_do_not_fit_are_refused(folder, base, case):
    tensors, message = WRONG[case]
    change(folder, **tensors)
    with pytest.raises(CheckpointError, match=message):
        AdapterCheckpoint(folder).bind(base)


@pytest.mark.parametrize("text", ["{", "[]", '{"prior_scale": 0}', '{"prior_scale": "x"}', '{"prior_scale": 1e999}'])
def test_a_damaged_sidecar_is_refused(folder, text):
    (folder / "bayesian_lora.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"bayesian_lora\.json"):
        AdapterCheckpoint(folder)
