"""Merges of Bayesian LoRA: for most methods LoRA, and weighted by what each expert is sure of."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_merge import merge, open_checkpoint
from nemo_merge.errors import PlanError
from nemo_merge.merging.reproduce import reproduce
from tests.fixtures.adapters import factors, lora_folder
from tests.fixtures.posteriors import bayesian_folder

SHAPES = {"encoder.q": (12, 10), "encoder.up": (20, 12), "encoder.conv": (8, 12, 3)}
METHOD = "precision_weighted"


@pytest.fixture
def base(tmp_path):
    """A base in float64, so that what a merge changes is seen to the last digits."""
    state = {f"{name}.weight": 0.05 * torch.randn(shape).double() for name, shape in SHAPES.items()}
    save_file({**state, "encoder.up.bias": torch.randn(20)}, tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


@pytest.fixture
def adapters(tmp_path):
    """Three Bayesian adapters of different ranks, modules, scalings and names, one without a spread of B."""
    return [
        bayesian_folder(tmp_path / "a", factors(SHAPES, 0), seed=0),
        bayesian_folder(tmp_path / "b", factors(SHAPES, 1, 3, ["encoder.up"]), seed=1, alpha=6, rho_b=False),
        bayesian_folder(tmp_path / "c", factors(SHAPES, 2, 1), seed=2, prefix="", prior_scale=0.02),
    ]


def merged(base, experts, output, method=METHOD, **options):
    """What a merge changes, by tensor."""
    merge(base, experts, method, output=output, overwrite=True, **options)
    start = load_file(base)
    return {name: tensor - start[name] for name, tensor in load_file(output).items()}


def moments(folder, name):
    """Mean, variance and prior variance of a matrix ``s B A`` of an adapter, from its files, by numpy; or None."""
    config = json.loads((folder / "adapter_config.json").read_text())
    scale = json.loads((folder / "bayesian_lora.json").read_text())["prior_scale"]
    tensors = {key.removeprefix("base_model.model."): value for key, value in load_file(folder / "adapter_model.safetensors").items()}  # fmt: skip
    if f"{name}.lora_A.weight" not in tensors:
        return None

    def matrix(key):
        return tensors[f"{name}.{key}"].flatten(1).numpy().astype(np.float64)

    a, b = matrix("lora_A.weight"), matrix("lora_B.weight")
    sa = np.log1p(np.exp(matrix("lora_rho_A")))
    s, rank = config["lora_alpha"] / config["r"], len(a)
    if f"{name}.lora_rho_B" not in tensors:
        prior = s**2 * scale**2 * (b**2).sum(1, keepdims=True) * np.ones_like(b @ a)
        return s * b @ a, s**2 * (b**2 @ sa**2), prior
    sb = np.log1p(np.exp(matrix("lora_rho_B")))
    variance = s**2 * (b**2 @ sa**2 + sb**2 @ a**2 + sb**2 @ sa**2)
    return s * b @ a, variance, np.full_like(variance, s**2 * rank * scale**4)


@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.0)])
@pytest.mark.parametrize("parameters", [{}, {"floor": 0.0}, {"prior_correction": True}, {"scale": 0.7}], ids=str)
def test_agrees_with_numpy(tmp_path, base, adapters, parameters, weights):
    found = merged(base, adapters, tmp_path / "out.safetensors", weights=weights, **parameters)
    for name in SHAPES:
        above = below = held = count = 0.0
        for index, folder in enumerate(adapters):
            if (of := moments(folder, name)) is None:
                continue  # says nothing of this tensor
            mean, variance, prior = of
            w = 1.0 if weights is None else weights[index]
            v = np.maximum(variance, parameters.get("floor", 0.01) * variance.mean())
            above, below, count = above + w * mean / v, below + w / v, count + w
            held = held + w / np.maximum(v, prior)
        if parameters.get("prior_correction"):
            below = below - (1 - 1 / count) * held
        wanted = parameters.get("scale", 1.0) * above / below
        np.testing.assert_allclose(found[f"{name}.weight"].flatten(1), wanted, rtol=1e-9, atol=1e-12)


def test_the_same_adapter_twice_is_itself(tmp_path, base, adapters):
    once = merged(base, adapters[:1], tmp_path / "out.safetensors", "soup")
    twice = merged(base, [adapters[0], adapters[0]], tmp_path / "out.safetensors")
    for name, change in once.items():
        torch.testing.assert_close(twice[name], change)


def test_an_adapter_that_is_not_sure_drops_out(tmp_path, base, adapters):
    unsure = bayesian_folder(tmp_path / "d", factors(SHAPES, 3), spread=1e6)
    with_it = merged(base, [*adapters, unsure], tmp_path / "out.safetensors")
    for name, change in merged(base, adapters, tmp_path / "out.safetensors").items():
        torch.testing.assert_close(with_it[name], change, rtol=1e-6, atol=1e-9)


def test_the_order_does_not_matter(tmp_path, base, adapters):
    first = merged(base, adapters, tmp_path / "out.safetensors", weights=(1, 2, 3))
    second = merged(base, adapters[::-1], tmp_path / "out.safetensors", weights=(3, 2, 1))
    for name, change in first.items():
        torch.testing.assert_close(second[name], change)


def test_factors_in_another_gauge_are_the_same_adapter(tmp_path, base, adapters):
    """``(B G)(G^-1 A)`` is ``B A``: rescaled and swapped with its spreads, and rotated where the spreads are alike."""
    tensors = load_file(adapters[0] / "adapter_model.safetensors")
    scales = torch.tensor([0.25, 3.0])

    def softplus(rho):
        return torch.nn.functional.softplus(rho.double())

    def inverse(sigma):
        return sigma.expm1().log().float()

    def save(folder, change):
        folder.mkdir()
        for file in ("adapter_config.json", "bayesian_lora.json"):
            (folder / file).write_bytes((adapters[0] / file).read_bytes())
        moved = {}
        for name, tensor in tensors.items():
            shape = (-1, *[1] * (tensor.dim() - 1)) if "_A" in name else (1, -1, *[1] * (tensor.dim() - 2))
            moved[name] = change(name, tensor, shape)
        save_file({name: tensor.contiguous() for name, tensor in moved.items()}, folder / "adapter_model.safetensors")
        return folder

    def rescaled(name, tensor, shape):
        factor = (1 / scales if "_A" in name else scales).view(shape)
        tensor = inverse(softplus(tensor) * factor) if "rho" in name else tensor * factor
        return tensor.flip(0 if "_A" in name else 1)

    angle = torch.tensor(0.4)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)

    def rotated(name, tensor, shape):
        if "rho" in name:
            return torch.full_like(tensor, -4.0)
        return torch.einsum("rs,s...->r...", turn, tensor) if "_A" in name else torch.einsum("os...,rs->or...", tensor, turn)  # fmt: skip

    def alike(name, tensor, shape):
        return torch.full_like(tensor, -4.0) if "rho" in name else tensor

    pairs = [(adapters[0], save(tmp_path / "scaled", rescaled))]
    pairs += [(save(tmp_path / "alike", alike), save(tmp_path / "turned", rotated))]
    for one, other in pairs:
        first = merged(base, [one, adapters[2]], tmp_path / "out.safetensors")
        second = merged(base, [other, adapters[2]], tmp_path / "out.safetensors")
        for name, change in first.items():
            torch.testing.assert_close(second[name], change, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["soup", "boosted_tsvm", "ties"])
def test_the_means_are_plain_lora_for_other_methods(tmp_path, base, method):
    for kind, folder in (("plain", lora_folder), ("bayesian", bayesian_folder)):
        experts = [folder(tmp_path / kind / str(seed), factors(SHAPES, seed)) for seed in (0, 1)]
        merge(base, experts, method, output=tmp_path / f"{kind}.safetensors")
        merge(base, experts, method, output=tmp_path / kind / "lora", as_adapter=2)
    for file in ("{}.safetensors", "{}/lora/adapter_model.safetensors"):
        assert load_file(tmp_path / file.format("plain")).keys() == load_file(tmp_path / file.format("bayesian")).keys()
        for name, tensor in load_file(tmp_path / file.format("plain")).items():
            assert torch.equal(load_file(tmp_path / file.format("bayesian"))[name], tensor)


@pytest.mark.parametrize("method", [METHOD, "ties"])
def test_a_change_of_full_rank_is_cut_to_an_adapter(tmp_path, base, adapters, method):
    found = merged(base, adapters, tmp_path / "out.safetensors", method)
    report = merge(base, adapters, method, output=tmp_path / "lora", as_adapter=3)
    lost = total = 0.0
    with open_checkpoint(base) as checkpoint, open_checkpoint(tmp_path / "lora") as lora:
        expert = lora.bind(checkpoint)
        for name in SHAPES:
            change = found[f"{name}.weight"].flatten(1)
            u, s, vt = torch.linalg.svd(change, full_matrices=False)
            torch.testing.assert_close(
                expert.low_rank(f"{name}.weight").rows(), u[:, :3] * s[:3] @ vt[:3], rtol=1e-4, atol=1e-6
            )
            lost, total = lost + float(s[3:].square().sum()), total + float(s.square().sum())
    (warning,) = report.warnings
    assert f"an adapter of rank 3 loses {(lost / total) ** 0.5:.1%} of the merged change" in warning
    assert "a larger rank loses less" in warning
    assert reproduce(tmp_path / "lora").same_bytes
    # A rank as large as the matrices keeps all of it.
    assert not merge(base, adapters, method, output=tmp_path / "all", as_adapter=12).warnings
    with pytest.raises(PlanError, match=r"looks at single entries.*pass a rank \(as_adapter=16\)"):
        merge(base, adapters, method, output=tmp_path / "exact", as_adapter=True)
    assert not (tmp_path / "exact").exists()


def test_emr_has_no_adapter(tmp_path, base, adapters):
    with pytest.raises(PlanError, match="emr leaves a package"):
        merge(base, adapters, "emr", output=tmp_path / "lora", as_adapter=4)


def test_the_record_names_the_prior(tmp_path, base, adapters):
    report = merge(base, adapters, METHOD, output=tmp_path / "out.safetensors")
    (entry, *_) = report.provenance["experts"]
    assert set(entry["sha256"]) == {"adapter_model.safetensors", "adapter_config.json", "bayesian_lora.json"}
    assert entry["adapter"]["posterior"] == {"prior_scale": 0.01}
    assert reproduce(tmp_path / "out.safetensors").same_bytes


def test_experts_without_posteriors_are_refused_at_the_start(tmp_path, base, adapters):
    plain = lora_folder(tmp_path / "plain", factors(SHAPES, 4))
    whole = tmp_path / "whole.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(base).items()}, whole)
    with pytest.raises(PlanError) as refusal:
        merge(base, [*adapters, plain, whole], METHOD, output=tmp_path / "out.safetensors")
    # All of them change the bias now, of which no adapter says anything but that it has not changed.
    first, second = refusal.value.problems
    assert first.startswith(f"{plain}: has no posterior of tensor 'encoder.")
    assert "train the expert with Bayesian LoRA" in first
    assert second.startswith(f"{whole}: has no posterior")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_tensor_without_posterior_takes_another_method_by_a_rule(tmp_path, base, adapters):
    head = {"base_model.model.encoder.up.bias": torch.randn(20)}
    (tmp_path / "d").mkdir()
    for file in adapters[0].iterdir():
        (tmp_path / "d" / file.name).write_bytes(file.read_bytes())
    save_file({**load_file(adapters[0] / "adapter_model.safetensors"), **head}, tmp_path / "d/adapter_model.safetensors")  # fmt: skip
    experts = [tmp_path / "d", adapters[2]]
    with pytest.raises(PlanError, match=r"d: has no posterior of tensor 'encoder\.up\.bias', which"):
        merge(base, experts, METHOD, output=tmp_path / "out.safetensors")
    found = merged(base, experts, tmp_path / "out.safetensors", rules=[{"match": "bias", "method": "soup"}])
    wanted = (next(iter(head.values())) - load_file(base)["encoder.up.bias"]) / 2
    torch.testing.assert_close(found["encoder.up.bias"], wanted)


def test_a_correction_needs_the_prior(tmp_path, base, adapters):
    (adapters[1] / "bayesian_lora.json").unlink()
    with pytest.raises(PlanError, match=r"b: does not say the prior of tensor .* without prior_correction"):
        merge(base, adapters, METHOD, output=tmp_path / "out.safetensors", prior_correction=True)
    merge(base, adapters, METHOD, output=tmp_path / "out.safetensors")
