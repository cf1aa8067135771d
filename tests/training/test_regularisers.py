"""Terms of the loss against their formulas, their gradients, and the divergence of Bayesian adapters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nemo_merge.errors import ConfigError
from nemo_merge.training.regulariser_settings import read_regulariser
from nemo_merge.training.regularisers import EWC, L2, L2SP, change, lora_factors, squared_norm
from tests.fixtures.adapters import Model, randomise

pytest.importorskip("peft")
from nemo_merge import adapters

TARGETS = ["linear_q", "linear_out"]


def with_lora(**options):
    model = Model()
    adapters.inject_lora(model, r=3, lora_alpha=5, target_modules=TARGETS, **options)
    randomise(model, 1)
    return model


def with_posteriors(**options):
    model = Model()
    config = adapters.BayesianLoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, **options)
    adapters.inject_bayesian_lora(model, config)
    randomise(model, 1)
    return model


def means(model):
    return [tensor for item in lora_factors(model) for tensor in (item.a, item.b)]


def test_factors_are_those_that_change_the_layers():
    model, base = with_lora(), Model()
    found = {item.layer: change(item) for item in lora_factors(model)}
    assert len(found) == 4
    adapters.merge_adapter(model)
    for layer, delta in found.items():
        moved = model.get_submodule(layer).weight - base.get_submodule(layer).weight
        torch.testing.assert_close(moved, delta, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_the_trace_is_the_norm_of_the_product(kind):
    model = Model()
    names = TARGETS if kind == "linear" else ["conv", "conv2d"]
    adapters.inject_lora(model, r=2, lora_alpha=7, target_modules=names)
    randomise(model, 2)
    for item in lora_factors(model):
        norm, product = squared_norm(item), change(item).square().sum()
        torch.testing.assert_close(norm, product)
        for a, b in zip(
            torch.autograd.grad(norm, [item.a, item.b]), torch.autograd.grad(product, [item.a, item.b]), strict=True
        ):
            torch.testing.assert_close(a, b)


def test_l2_is_half_gamma_times_the_squares():
    model, gamma = with_lora(), 0.3
    value = L2(read_regulariser({"name": "l2", "gamma": gamma}).gammas)(model)
    torch.testing.assert_close(value, gamma / 2 * sum(tensor.square().sum() for tensor in means(model)))
    for gradient, tensor in zip(torch.autograd.grad(value, means(model)), means(model), strict=True):
        torch.testing.assert_close(gradient, gamma * tensor)


@pytest.mark.parametrize("reduction", ["per_factor_mean", "global_mean", "elbo", "sum"])
@pytest.mark.parametrize("sigma_b", ["deterministic", "same"])
def test_l2_pulls_the_factors_as_the_divergence_of_a_bayesian_adapter_pulls_its_means(reduction, sigma_b):
    beta, prior, tokens = 0.5, 0.02, 700
    model = with_posteriors(beta=beta, prior_scale=prior, kl_reduction=reduction, tokens=tokens, sigma_b=sigma_b)
    wanted = torch.autograd.grad(beta * adapters.kl_divergence(model), means(model))
    settings = {"name": "l2", "beta": beta, "prior_scale": prior, "kl_reduction": reduction, "tokens": tokens}
    found = torch.autograd.grad(L2(read_regulariser(settings).gammas)(model), means(model))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def trained_a_little(model, seed=3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value += 0.1 * torch.randn(value.shape, generator=generator)


def test_l2_sp_is_the_distance_of_what_is_trained():
    model = Model()
    model.head.requires_grad_(False)
    start = {name: value.clone() for name, value in model.named_parameters()}
    term = L2SP(0.4, model)
    assert term(model) == 0
    trained_a_little(model)
    with torch.no_grad():
        model.head.weight += 1  # frozen: none of its business
    moved = {name: value - start[name] for name, value in model.named_parameters() if value.requires_grad}
    torch.testing.assert_close(term(model), 0.2 * sum(delta.square().sum() for delta in moved.values()))
    values = [value for value in model.parameters() if value.requires_grad]
    for gradient, delta in zip(torch.autograd.grad(term(model), values), moved.values(), strict=True):
        torch.testing.assert_close(gradient, 0.4 * delta)


def test_l2_sp_of_an_adapter_is_the_distance_of_the_merged_weights():
    model, base = with_lora(), Model()
    value = L2SP(0.4, model)(model)
    adapters.merge_adapter(model)
    distance = sum((a - b).square().sum() for a, b in zip(model.parameters(), base.parameters(), strict=True))
    torch.testing.assert_close(value, 0.2 * distance, rtol=1e-4, atol=1e-6)


def test_ewc_weighs_every_distance():
    model = Model()
    fisher = {name: torch.rand(value.shape) for name, value in model.named_parameters()}
    start = {name: value.clone() for name, value in model.named_parameters()}
    term = EWC(3.0, fisher, model)
    trained_a_little(model)
    wanted = sum((fisher[name] * (value - start[name]).square()).sum() for name, value in model.named_parameters())
    torch.testing.assert_close(term(model), 1.5 * wanted)


def test_ewc_of_an_adapter_weighs_the_change_of_the_merged_weights():
    model = with_lora()
    fisher = {f"{item.layer}.weight": torch.rand(item.b.shape[0], item.a.shape[1]) for item in lora_factors(model)}
    wanted = sum((fisher[f"{item.layer}.weight"] * change(item).square()).sum() for item in lora_factors(model))
    torch.testing.assert_close(EWC(2.0, fisher, model)(model), wanted)
    ones = {name: torch.ones_like(value) for name, value in fisher.items()}
    torch.testing.assert_close(EWC(2.0, ones, model)(model), L2SP(2.0, model)(model))


def test_ewc_refuses_information_about_something_else():
    with pytest.raises(ConfigError, match=r"does not fit 'encoder\.embed\.weight'"):
        EWC(1.0, {"encoder.embed.weight": torch.zeros(3, 3)}, Model())


def test_terms_are_exact_within_mixed_precision():
    model = with_lora()
    terms = [L2(lambda sizes: [1.0] * len(sizes)), L2SP(1.0, model)]
    wanted = [term(model) for term in terms]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert [term(model) for term in terms] == wanted


def test_a_term_without_anything_to_hold_is_refused():
    with pytest.raises(ConfigError, match="nothing that it could hold"):
        L2(lambda sizes: [])(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "l3"}, r"name='l3'; did you mean 'l2'"),
        ({"name": "l2"}, "give either gamma, or beta"),
        ({"name": "l2", "gamma": 1, "beta": 1}, "give either gamma, or beta"),
        ({"name": "l2", "beta": -0.5}, r"beta=-0\.5 is not a number from 0"),
        ({"name": "l2", "beta": 1, "prior_scale": 0}, "prior_scale=0 is not a number above 0"),
        ({"name": "l2", "beta": 1, "kl_reduction": "elbo"}, "needs the number of tokens"),
        ({"name": "l2", "beta": 1, "kl_reduction": "mean"}, "kl_reduction='mean'"),
        ({"name": "l2_sp"}, "gamma"),
        ({"name": "l2_sp", "gama": 1}, r"no setting 'gama'; did you mean 'gamma'"),
        ({"name": "ewc", "gamma": 1, "fisher": "f.pt"}, r"does not end in \.safetensors"),
        ({"name": "ewc", "gamma": 1, "fisher": "f.safetensors", "labels": "psudo"}, "did you mean 'pseudo'"),
        ({"name": "ewc", "gamma": float("nan"), "fisher": "f.safetensors"}, "gamma=nan"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        read_regulariser(settings)
