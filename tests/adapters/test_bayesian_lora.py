"""Bayesian LoRA in a model: what is drawn when, what is trained, several adapters, precision, bad input."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn.functional import softplus
from torch.utils.checkpoint import checkpoint

from nemo_merge.adapters import (
    BayesianLoraConfig,
    inject_bayesian_lora,
    inject_lora,
    kl_divergence,
    parameter_groups,
    remove_adapter,
    sampling,
)
from nemo_merge.adapters.estimators import ESTIMATORS
from nemo_merge.errors import ConfigError
from tests.fixtures.lora import QV, Net, bayesian, frames, outputs, settings, shaken


def gradients(model):
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def test_the_start_is_the_base():
    net = Net().eval()
    before = outputs(net)
    assert inject_bayesian_lora(net, settings()) == [f"layers.{i}.linear_{p}" for i in (0, 1) for p in "qv"]
    assert torch.equal(outputs(net), before)
    assert torch.equal(outputs(net.train()), before)  # B is zero and does not vary; the statistics are still
    assert {name.split(".")[3] for name, value in net.named_parameters() if value.requires_grad} == {"lora_A", "lora_B", "lora_rho_A"}  # fmt: skip


def test_where_b_varies_too_the_start_is_the_base_on_average():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 4))
    before = net(frames(1, 3))
    inject_bayesian_lora(net, settings(sigma_b="same", target_modules=["0"]))
    with torch.no_grad():
        drawn = torch.stack([net(frames(1, 3)) for _ in range(2000)])
    assert drawn.std() > 0
    assert ((drawn.mean(0) - before).abs() < 5 * drawn.std(0) / math.sqrt(2000)).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_evaluation_uses_the_means_and_draws_nothing(estimator):
    net = bayesian(estimator=estimator, sigma_b="same").eval()
    state = torch.get_rng_state()
    first = net(frames())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(net(frames()), first)
    net.train()
    assert not torch.equal(net(frames()), net(frames()))
    torch.manual_seed(5)
    one = net(frames())
    torch.manual_seed(5)
    assert torch.equal(net(frames()), one)
    with sampling(net, False):
        assert torch.equal(net(frames()), first)
        with sampling(net, True):
            assert not torch.equal(net(frames()), first)
    assert not torch.equal(net(frames()), first)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_without_spread_it_is_lora(estimator):
    net = bayesian(estimator=estimator, sigma_b="same")
    for name, value in net.named_parameters():
        if "rho" in name:
            nn.init.constant_(value, -50.0)
    plain = Net()
    inject_lora(plain, r=3, lora_alpha=6, lora_dropout=0.0, target_modules=QV)
    plain.load_state_dict({name: value for name, value in net.state_dict().items() if "rho" not in name})
    found = [model.train()(frames()) for model in (net, plain)]
    # lrt keeps 1e-8 under the root.
    torch.testing.assert_close(*found, rtol=1e-5, atol=5e-3 if estimator == "lrt" else 1e-6)
    if estimator != "lrt":
        for output in found:
            output.square().sum().backward()
        ours = gradients(net)
        for name, value in gradients(plain).items():
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)


def test_everything_drawn_gets_a_gradient_and_the_base_none():
    net = bayesian(sigma_b="same")
    (net(frames()).square().mean() + kl_divergence(net)).backward()
    for name, value in net.named_parameters():
        if "lora_" in name:
            assert value.grad.abs().sum() > 0, name
        else:
            assert value.grad is None, name


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient_checkpointing_draws_the_same_noise_again(estimator):
    net = bayesian(estimator=estimator)
    found = []
    for wrap in (lambda layer, x: layer(x), lambda layer, x: checkpoint(layer, x, use_reentrant=False)):
        net.zero_grad()
        torch.manual_seed(4)
        x = frames()
        for layer in net.layers:
            x = wrap(layer, x)
        x.square().sum().backward()
        found.append(gradients(net))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def trained(beta, steps=150):
    net = Net(layers=1).eval()
    inject_bayesian_lora(net, settings(beta=beta, sigma_b="same"))
    target = Net(seed=5, layers=1).eval()(frames(8, 9)).detach()
    net.train()
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW(parameter_groups(net, rho_learning_rate=0.05), lr=0.02, weight_decay=0)
    for _ in range(steps):
        loss = (net(frames(8, 9)) - target).square().mean() + beta * kl_divergence(net)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    layers = [layer for layer in net.modules() if isinstance(layer, BaseTunerLayer)]
    size = sum(layer.get_delta_weight("default").norm().item() for layer in layers)
    moved = (net.eval()(frames(8, 9)) - Net(layers=1).eval()(frames(8, 9))).square().mean().item()
    return size, moved, torch.cat([softplus(layer.lora_rho_A["default"]).flatten() for layer in layers]).detach()


def test_a_larger_beta_keeps_nearer_to_the_base():
    sizes, moves, sigmas = zip(*(trained(beta) for beta in (0.0, 1e-3, 1e-1, 100.0)), strict=True)
    assert list(sizes) == sorted(sizes, reverse=True)
    assert list(moves) == sorted(moves, reverse=True)
    assert sizes[-1] < 1e-2 * sizes[0]
    assert (sigmas[-1] - 0.01).abs().max() < 2e-3  # the prior


def test_several_adapters():
    net = bayesian().eval()
    base = outputs(Net().eval())
    first, only = outputs(net), kl_divergence(net)
    inject_bayesian_lora(net, settings(r=2, prior_scale=0.1), "other")
    layer = net.layers[0].linear_q
    assert layer.active_adapters == ["other"]
    assert torch.equal(outputs(net), base)
    assert kl_divergence(net) == kl_divergence(net, adapter_name="other")
    with pytest.raises(ConfigError, match="no active Bayesian adapter 'default'"):
        kl_divergence(net, adapter_name="default")

    def layers():
        return [module for module in net.modules() if isinstance(module, BaseTunerLayer)]

    for module in layers():
        module.set_adapter(["default", "other"])
    torch.testing.assert_close(
        kl_divergence(net), only + kl_divergence(net, adapter_name="other"), rtol=1e-6, atol=1e-6
    )
    assert all(value.requires_grad for name, value in net.named_parameters() if "rho" in name)
    net.train()(frames()).sum().backward()
    for module in layers():
        module.enable_adapters(False)
    assert torch.equal(outputs(net.eval()), base)
    for module in layers():
        module.enable_adapters(True)
    remove_adapter(net, "other")
    assert set(layer.lora_rho_A) == set(layer.posteriors) == {"default"}
    assert torch.equal(outputs(net), first)
    assert kl_divergence(net) == only


def test_what_peft_adds_by_itself_is_plain():
    """PEFT makes combined adapters through our layers; they have no spread of their own."""
    net = bayesian()
    net.layers[0].linear_q.update_layer("combined", 2, *_arguments())
    assert "combined" not in net.layers[0].linear_q.lora_rho_A
    assert "combined" not in net.layers[0].linear_q.posteriors


def _arguments():
    import inspect

    from peft import LoraConfig
    from peft.tuners.lora import Linear

    config = LoraConfig(r=2, lora_alpha=4)
    if "config" in inspect.signature(Linear.update_layer).parameters:
        return 4, config
    return 4, 0.0, True, False, False, False, False


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_base_of_16_bits_keeps_posteriors_in_float32(when):
    net = Net()
    if when == "before":
        net.to(torch.bfloat16)
    inject_bayesian_lora(net, settings(sigma_b=0.01))
    net.to(torch.bfloat16)
    kinds = {name: value.dtype for name, value in net.named_parameters()}
    assert all((kind == torch.float32) == ("lora_" in name) for name, kind in kinds.items())
    optimiser = torch.optim.AdamW(parameter_groups(net), lr=1e-3)
    before = {name: value.clone() for name, value in net.named_parameters() if value.requires_grad}
    for _ in range(10):
        loss = net(frames().bfloat16()).float().square().mean() + kl_divergence(net)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for name, value in net.named_parameters():
        if value.requires_grad:
            assert value.dtype == torch.float32
            assert (value != before[name]).float().mean() > 0.9, name
    assert net.eval()(frames().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_mixed_precision(estimator):
    net = bayesian(estimator=estimator)
    with torch.autocast("cpu", torch.bfloat16):
        loss = net(frames()).square().mean()
    loss.backward()
    assert all(torch.isfinite(value).all() for value in gradients(net).values())


def test_spreads_are_not_decayed():
    groups = parameter_groups(bayesian(rho_learning_rate=0.3))
    assert [group.get("weight_decay") for group in groups] == [None, 0.0]
    assert groups[1]["lr"] == 0.3
    assert len(groups[0]["params"]) == 8
    assert len(groups[1]["params"]) == 4
    optimiser = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.9)
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.9, 0.0]


def test_a_copy_is_independent():
    net = bayesian()
    twin = copy.deepcopy(net)
    remove_adapter(twin)
    assert torch.equal(outputs(twin.eval()), outputs(Net().eval()))
    assert kl_divergence(net) > 0


class Mixed(nn.Module):
    """Linear layers of several kinds: plain, of a subclass, and tied."""

    def __init__(self):
        super().__init__()
        self.plain, self.tied = nn.Linear(12, 12), nn.Linear(12, 9, bias=False)
        self.embed = nn.Embedding(9, 12)
        self.tied.weight = self.embed.weight
        self.attention = nn.MultiheadAttention(12, 2)


def test_layers_that_are_not_plain_are_left_out():
    model = Mixed()
    with pytest.warns(UserWarning, match=r"no Bayesian adapter for tied, attention.out_proj"):
        names = inject_bayesian_lora(model, settings(target_modules=["plain", "tied", "out_proj"]))
    assert names == ["plain"]
    with pytest.raises(ConfigError, match=r"no plain linear layer, only attention\.out_proj"):
        inject_bayesian_lora(Mixed(), settings(target_modules=["out_proj"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": -1}, "beta=-1 is not a number of 0 or more"),
        ({"beta": float("nan")}, "beta=nan"),
        ({"r": 0}, "r=0 is not a whole number of 1 or more"),
        ({"estimator": "flip"}, "estimator='flip'; did you mean 'flipout'"),
        ({"kl_reduction": "elbow"}, "did you mean 'elbo'"),
        ({"kl_reduction": "elbo"}, "set tokens="),
        ({"beta_schedule": "linear"}, "needs beta_warmup_steps"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa': the prior is centred at no change"),
        ({"prior_scale": 0}, "prior_scale=0 is not a number above 0"),
        ({"rho_init": (1, 0)}, "rho_init"),
        ({"sigma_b": "none"}, "sigma_b='none' is not 'deterministic', 'same' or a number above 0"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ConfigError, match=message):
        BayesianLoraConfig(**changes)


def test_bad_injections_leave_the_model_alone():
    net = Net()
    before = list(net.state_dict())
    with pytest.raises(ConfigError, match=r"selects no module of Net; .* layers.0.linear_q"):
        inject_bayesian_lora(net, settings(target_modules=["query"]))
    with pytest.raises(ConfigError, match="Net is none of the models with default targets"):
        inject_bayesian_lora(net)
    with pytest.raises(ConfigError, match="a name without dots"):
        inject_bayesian_lora(net, settings(), "a.b")
    assert list(net.state_dict()) == before
    assert all(value.requires_grad for value in net.parameters())
    inject_bayesian_lora(net, settings())
    with pytest.raises(ConfigError, match="has an adapter 'default' already"):
        inject_bayesian_lora(net, settings())
    plain = Net()
    inject_lora(plain, r=2, target_modules=QV)
    state = plain.state_dict()
    with pytest.raises(ConfigError, match="got no posterior: it has plain adapters already"):
        inject_bayesian_lora(plain, settings(), "bayesian")
    assert plain.state_dict().keys() == state.keys()
    shaken(plain)


def test_nothing_is_said_where_all_is_well():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bayesian()(frames())
