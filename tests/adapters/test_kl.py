"""The divergence from the prior: its formula, its gradients, its minimum, and what the reductions mean."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference
from torch.nn.functional import softplus

from nemo_merge.adapters import beta_at, kl_divergence
from nemo_merge.adapters.kl import gaussian_kl
from nemo_merge.errors import ConfigError
from tests.fixtures.lora import Net, bayesian, settings

PRIOR = 0.01


def posterior(seed=0, size=200):
    generator = torch.Generator().manual_seed(seed)
    mean = 0.03 * torch.randn(size, generator=generator, dtype=torch.float64)
    return mean, -4.6 + torch.randn(size, generator=generator, dtype=torch.float64)


def test_it_is_the_divergence_of_two_normal_distributions():
    mean, rho = posterior()
    expected = reference(Normal(mean, softplus(rho)), Normal(torch.zeros_like(mean), PRIOR))
    torch.testing.assert_close(gaussian_kl(mean, rho, PRIOR), expected, rtol=1e-10, atol=1e-10)
    assert (gaussian_kl(mean, rho, PRIOR) >= 0).all()


def test_it_is_zero_at_the_prior_and_grows_with_the_mean():
    rho = torch.tensor(math.log(math.expm1(PRIOR)), dtype=torch.float64)
    assert abs(float(gaussian_kl(torch.zeros_like(rho), rho, PRIOR))) < 1e-12
    sizes = gaussian_kl(torch.linspace(0, 1, 50, dtype=torch.float64), rho, PRIOR)
    assert (sizes.diff() > 0).all()


def test_its_gradients_are_those_of_the_formula():
    mean, rho = (value.requires_grad_() for value in posterior(size=20))
    assert torch.autograd.gradcheck(lambda m, r: gaussian_kl(m, r, PRIOR), (mean, rho), eps=1e-7, atol=1e-4)
    to_mean, to_rho = torch.autograd.grad(gaussian_kl(mean, rho, PRIOR).sum(), (mean, rho))
    sigma = softplus(rho)
    torch.testing.assert_close(to_mean, mean / PRIOR**2)
    torch.testing.assert_close(to_rho, (sigma / PRIOR**2 - 1 / sigma) * torch.sigmoid(rho))


def test_a_dead_spread_gives_finite_numbers():
    mean, rho = torch.zeros(3), torch.tensor([-50.0, -500.0, 500.0], requires_grad=True)
    value = gaussian_kl(mean, rho, PRIOR)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(rho.grad).all()


def test_a_deterministic_factor_pays_for_its_mean_only():
    mean, rho = posterior()
    full = gaussian_kl(mean, rho, PRIOR) - gaussian_kl(torch.zeros_like(mean), rho, PRIOR)
    torch.testing.assert_close(gaussian_kl(mean, None, PRIOR), full)


@pytest.mark.parametrize("options", [{"sigma_b": "same"}, {"sigma_b": "deterministic"}, {"a_only": True}])
def test_reductions(options):
    net = bayesian(**options)
    entries = []
    for layer in net.layers:
        for module in (layer.linear_q, layer.linear_v):
            entries.append(gaussian_kl(module.lora_A["default"].weight, module.lora_rho_A["default"], PRIOR))
            if not options.get("a_only"):
                rho = module.lora_rho_B["default"] if options["sigma_b"] == "same" else None
                entries.append(gaussian_kl(module.lora_B["default"].weight, rho, PRIOR))
    total = sum(entry.sum() for entry in entries)
    expected = {
        "per_factor_mean": sum(entry.mean() for entry in entries),
        "sum": total,
        "elbo": total / 1000,
        "global_mean": total / sum(entry.numel() for entry in entries),
    }
    for reduction, value in expected.items():
        torch.testing.assert_close(kl_divergence(net, reduction, tokens=1000), value)
    # The mean over each factor is the evidence lower bound with beta_m = beta N / |theta_m|.
    tokens, beta = 5000, 0.5
    by_factor = sum(beta * tokens / entry.numel() * entry.sum() / tokens for entry in entries)
    torch.testing.assert_close(beta * kl_divergence(net), by_factor)


def test_schedules():
    assert beta_at(settings(beta=2.0), 0) == 2.0
    for schedule, middle in (("linear", 0.25), ("cosine", (1 - math.cos(math.pi / 4)) / 2)):
        config = settings(beta=2.0, beta_schedule=schedule, beta_warmup_steps=100)
        assert [beta_at(config, step) for step in (0, 25, 100, 1000)] == pytest.approx([0, 2 * middle, 2, 2])


def test_bad_input():
    with pytest.raises(ConfigError, match="Net has no active Bayesian adapter; inject_bayesian_lora"):
        kl_divergence(Net())
    with pytest.raises(ConfigError, match="no active Bayesian adapter 'news'"):
        kl_divergence(bayesian(), adapter_name="news")
    with pytest.raises(ConfigError, match="kl_reduction='mean'; did you mean 'global_mean'"):
        kl_divergence(bayesian(), "mean")
    with pytest.raises(ConfigError, match="'elbo' needs the number of tokens"):
        kl_divergence(bayesian(), "elbo")
