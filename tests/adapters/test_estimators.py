"""The posterior that training finds is the exact one where that is known, and every estimator draws from it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from nemo_merge.adapters import inject_bayesian_lora, kl_divergence
from nemo_merge.adapters.estimators import ESTIMATORS
from tests.fixtures.lora import settings

DRAWS = 6000


def regression(estimator="direct"):
    """y = a x + noise with one Bayesian factor (B = 1): ``(model, layer, x, y, noise)``, all in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    noise = 0.05
    y = x @ (0.02 * torch.randn(6, 1, generator=generator, dtype=torch.float64))
    y = y + noise * torch.randn(40, 1, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(6, 1, bias=False)).double()
    nn.init.zeros_(model[0].weight)
    inject_bayesian_lora(model, settings(r=1, lora_alpha=1, target_modules=["0"], a_only=True, estimator=estimator))
    nn.init.ones_(model[0].lora_B["default"].weight)
    return model, model[0], x, y, noise


def exact(x, y, noise, prior):
    """Ridge regression's mean, and the variances of the closest factorised Gaussian."""
    precision = x.T @ x / noise**2 + torch.eye(x.shape[1], dtype=x.dtype) / prior**2
    return torch.linalg.solve(precision, x.T @ y / noise**2).T, 1 / precision.diag()


def test_the_optimum_is_the_exact_posterior():
    model, layer, x, y, noise = regression()
    mean, rho = layer.lora_A["default"].weight, layer.lora_rho_A["default"]
    optimiser = torch.optim.LBFGS([mean, rho], max_iter=400, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe")  # fmt: skip
    model.eval()

    def loss():
        """The expected negative log likelihood, in closed form, and the divergence."""
        optimiser.zero_grad()
        spread = x.square() @ layer.delta_variance("default").T
        value = ((y - model(x)).square() + spread).sum() / (2 * noise**2) + kl_divergence(model, "sum")
        value.backward()
        return value

    optimiser.step(loss)
    expected_mean, expected_variance = exact(x, y, noise, 0.01)
    torch.testing.assert_close(mean.detach(), expected_mean, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(softplus(rho).square().detach()[0], expected_variance, rtol=1e-6, atol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_drawn_gradients_vanish_at_the_exact_posterior(estimator):
    model, layer, x, y, noise = regression(estimator)
    mean, rho = layer.lora_A["default"].weight, layer.lora_rho_A["default"]
    expected_mean, expected_variance = exact(x, y, noise, 0.01)
    with torch.no_grad():
        mean.copy_(expected_mean)
        rho.copy_(expected_variance.sqrt().expm1().log()[None])
    drawn = []
    for _ in range(600):
        loss = (y - model(x)).square().sum() / (2 * noise**2) + kl_divergence(model, "sum")
        drawn.append(torch.cat(torch.autograd.grad(loss, (mean, rho))).flatten())
    found = torch.stack(drawn)
    error = found.std(0) / math.sqrt(len(found))
    # lrt adds 1e-8 under the root, some 1e-4 of the variance here.
    assert (found.mean(0).abs() < 5 * error + 1e-3 * found.std(0)).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_moments_of_one_factor(estimator):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)  # [utterance, frame, feature]
    mean = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    sigma = 0.1 + torch.rand(2, 4, generator=generator, dtype=torch.float64)
    drawn = torch.stack([ESTIMATORS[estimator](x, mean, sigma) for _ in range(DRAWS)])
    variance = x.square() @ sigma.square().T
    assert ((drawn.mean(0) - x @ mean.T).abs() < 5 * (variance / DRAWS).sqrt()).all()
    torch.testing.assert_close(drawn.var(0), variance, rtol=5 * math.sqrt(2 / DRAWS), atol=0)

    def correlations(a, b):
        product = ((a - a.mean(0)) * (b - b.mean(0))).mean(0)
        return product / (a.std(0) * b.std(0))

    def shared(a, b):
        return (a * b) @ sigma.square().T / ((a.square() @ sigma.square().T) * (b.square() @ sigma.square().T)).sqrt()

    within = shared(x[:, 0], x[:, 1]) * (estimator in ("direct", "flipout_utterance"))
    across = shared(x[0], x[1]) * (estimator == "direct")
    assert ((correlations(drawn[:, :, 0], drawn[:, :, 1]) - within).abs() < 5 / math.sqrt(DRAWS)).all()
    assert ((correlations(drawn[:, 0], drawn[:, 1]) - across).abs() < 5 / math.sqrt(DRAWS)).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_silence_gives_finite_gradients(estimator):
    x = torch.zeros(2, 3, 4, requires_grad=True)
    mean, sigma = torch.ones(2, 4, requires_grad=True), torch.full((2, 4), 0.01, requires_grad=True)
    ESTIMATORS[estimator](x, mean, sigma).sum().backward()
    assert all(torch.isfinite(value.grad).all() for value in (x, mean, sigma))


@pytest.mark.parametrize("sigma_b", [0.3, "deterministic"])
def test_moments_of_the_change(sigma_b):
    model = nn.Sequential(nn.Linear(5, 4, bias=False))
    nn.init.zeros_(model[0].weight)
    inject_bayesian_lora(
        model, settings(r=2, target_modules=["0"], sigma_b=sigma_b, estimator="direct", rho_init=(-1.5, -0.5))
    )
    layer = model[0]
    nn.init.normal_(layer.lora_B["default"].weight)
    with torch.no_grad():
        drawn = torch.stack([model(torch.eye(5)).T for _ in range(DRAWS)])
        expected = layer.get_delta_weight("default")
        variance = layer.delta_variance("default")
    assert ((drawn.mean(0) - expected).abs() < 5 * (variance / DRAWS).sqrt()).all()
    # Products of Gaussians have heavier tails, so the variance of the variance is measured.
    error = (drawn - drawn.mean(0)).square().std(0) / math.sqrt(DRAWS)
    assert ((drawn.var(0) - variance).abs() < 5 * error).all()
