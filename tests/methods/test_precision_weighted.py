"""The product of Gaussian posteriors, against numpy and against what is known of it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from nemo_merge import merge_state_dicts
from nemo_merge.errors import ConfigError, PlanError
from nemo_merge.methods import get
from nemo_merge.methods.precision_weighted import product_of_posteriors
from nemo_merge.posterior import lora_posterior

ONES = torch.ones(3, dtype=torch.float64)


def posteriors(count: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(count, 6, 5, generator=generator, dtype=torch.float64)
    return means, torch.randn(count, 6, 5, generator=generator, dtype=torch.float64).exp()


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 2.0, 0.0)])
@pytest.mark.parametrize("prior", [None, 0.1, 3.0])
def test_agrees_with_numpy(weights, prior):
    means, variances = posteriors()
    priors = None if prior is None else torch.full_like(means, prior)
    found, left = product_of_posteriors(means, variances, torch.tensor(weights), priors=priors)
    w = np.array(weights)[:, None, None]
    precision = (w / variances.numpy()).sum(0)
    if prior is not None:
        held = (w / np.maximum(prior, variances.numpy())).sum(0)
        precision = precision - (1 - 1 / w.sum()) * held
    np.testing.assert_allclose(left, 1 / precision, rtol=1e-12)
    np.testing.assert_allclose(found, (w * means.numpy() / variances.numpy()).sum(0) / precision, rtol=1e-12)


def test_the_prior_is_counted_once():
    """The formula of the product of Gaussians where no posterior is wider than the prior."""
    means, variances = posteriors()
    prior = float(variances.max())
    found, left = product_of_posteriors(means, variances, ONES, priors=torch.full_like(means, prior))
    precision = (1 / variances).sum(0) - 2 / prior
    torch.testing.assert_close(left, 1 / precision)
    torch.testing.assert_close(found, (means / variances).sum(0) / precision)


def test_the_correction_lies_between_mean_and_sum():
    means, variances = posteriors()
    for prior, wanted in ((1e12, "mean"), (1e-12, "sum")):
        found, _ = product_of_posteriors(means, variances, ONES, priors=torch.full_like(means, prior))
        mean, _ = product_of_posteriors(means, variances, ONES)
        torch.testing.assert_close(found, mean if wanted == "mean" else 3 * mean)


def test_the_same_posterior_twice_has_the_same_mean_and_half_the_variance():
    means, variances = posteriors(1)
    found, left = product_of_posteriors(means.expand(2, 6, 5), variances.expand(2, 6, 5), ONES[:2])
    torch.testing.assert_close(found, means[0])
    torch.testing.assert_close(left, variances[0] / 2)


def test_equal_variances_give_the_mean():
    means, _ = posteriors()
    found, _ = product_of_posteriors(means, torch.full_like(means, 7.0), ONES)
    torch.testing.assert_close(found, means.mean(0))


@pytest.mark.parametrize("wide", [1e12, 1e300, torch.inf])
def test_an_expert_that_is_not_sure_drops_out(wide):
    means, variances = posteriors()
    variances[1] = wide
    found, left = product_of_posteriors(means, variances, ONES)
    others = [0, 2]
    wanted, remaining = product_of_posteriors(means[others], variances[others], ONES[:2])
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(left, remaining, rtol=1e-9, atol=1e-9)


def test_the_order_does_not_matter():
    means, variances = posteriors()
    weights = torch.tensor([0.5, 1.0, 2.0])
    first, _ = product_of_posteriors(means, variances, weights)
    for order in map(list, itertools.permutations(range(3))):
        found, _ = product_of_posteriors(means[order], variances[order], weights[order])
        torch.testing.assert_close(found, first)


def test_no_variance_is_certainty_unless_nothing_was_learnt():
    """By column: one is certain, two are, one says nothing (0 and 0), all say nothing."""
    means = torch.tensor([[1.0, 1.0, 0.0, 0.0], [2.0, 3.0, 2.0, 0.0]], dtype=torch.float64)
    variances = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    found, left = product_of_posteriors(means, variances, ONES[:2])
    assert found.tolist() == [1.0, 2.0, 2.0, 0.0]
    assert left.tolist() == [0.0, 0.0, 1.0, torch.inf]


@pytest.mark.parametrize("size", [1e-150, 1e-30, 1e30, 1e150])
def test_variances_of_any_size(size):
    means, variances = posteriors()
    wanted, _ = product_of_posteriors(means, variances, ONES)
    torch.testing.assert_close(product_of_posteriors(means, size * variances, ONES)[0], wanted)


def test_the_floor_is_a_share_of_the_experts_mean_variance():
    """No entry counts more than 1/floor times what it would at the mean variance."""
    base, deltas = {"w": torch.zeros(1, 4).double()}, ([1.0, 1, 1, 1], [3.0, 3, 3, 3])
    experts = [{"w": torch.tensor([delta]).double()} for delta in deltas]
    variances = [{"w": torch.tensor([[1e-9, 1.0, 1.0, 2.0]]).double()}, {"w": torch.ones(1, 4).double()}]
    found = merge_state_dicts(base, experts, "precision_weighted", variances=variances, floor=0.1)["w"]
    wanted = [(1 / v + 3) / (1 / v + 1) for v in (0.1, 1.0, 1.0, 2.0)]
    torch.testing.assert_close(found, torch.tensor([wanted], dtype=torch.float64), rtol=1e-8, atol=0)
    exact = merge_state_dicts(base, experts, "precision_weighted", variances=variances, floor=0.0)["w"]
    assert abs(float(exact[0, 0]) - 1) < 1e-8


@pytest.mark.parametrize(("rank", "rho_b"), [(3, True), (3, False), (1, True)])
def test_variances_of_factors_are_those_of_samples(rank, rho_b):
    """The formula, and means, over many draws of A and B; six standard errors of a variance."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    a, b, rho_a, rho = normal(rank, 4), normal(3, rank), normal(rank, 4), normal(3, rank)
    found = lora_posterior(a, b, rho_a, rho if rho_b else None, 1.5, 0.3)
    draws, softplus = 200_000, torch.nn.functional.softplus
    some_a = a + softplus(rho_a) * normal(draws, rank, 4)
    some_b = b + (softplus(rho) * normal(draws, 3, rank) if rho_b else 0)
    products = 1.5 * some_b @ some_a
    variance = found.variances_like(a.new_zeros(3, 4))
    fourth = (products - products.mean(0)).pow(4).mean(0)
    error = ((fourth - variance.square()) / draws).sqrt()
    assert bool(((products.var(0) - variance).abs() < 6 * error).all())
    prior = 1.5**2 * (rank * 0.3**4 if rho_b else 0.3**2 * b.square().sum(1, keepdim=True).expand(3, 4))
    torch.testing.assert_close(found.priors_like(a.new_zeros(3, 4)), torch.as_tensor(prior).expand(3, 4).double())


@pytest.mark.parametrize("weights", [[1.0, -0.5], [0.0, 0.0]])
def test_weights_that_are_no_powers_are_refused(weights):
    with pytest.raises(ConfigError, match="must be 0 or more, and not all 0"):
        get("precision_weighted", weights=weights)


WRONG = {
    "none": (None, {}, "<expert 0>: has no posterior of tensor 'w', which precision_weighted weights by; train"),
    "one expert's": ([{"w": torch.ones(2, 3)}, {}], {}, "<expert 1>: has no posterior"),
    "another shape": ([{"w": torch.ones(3, 2)}] * 2, {}, r"variances of tensor 'w' are \[3, 2\], but it is \[2, 3\]"),
    "negative": ([{"w": -torch.ones(2, 3)}] * 2, {}, "variances of tensor 'w' are not all 0 or more"),
    "not a number": ([{"w": torch.full((2, 3), torch.nan)}] * 2, {}, "are not all 0 or more"),
    "no prior": ([{"w": torch.ones(2, 3)}] * 2, {"prior_correction": True}, "does not say the prior of tensor 'w'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_variances_that_do_not_fit_are_refused(case):
    variances, parameters, message = WRONG[case]
    base, experts = {"w": torch.zeros(2, 3)}, [{"w": torch.ones(2, 3)}, {"w": torch.full((2, 3), 2.0)}]
    with pytest.raises(PlanError, match=message):
        merge_state_dicts(base, experts, "precision_weighted", variances=variances, **parameters)
    with pytest.raises(ConfigError, match="variances of 1 experts for 2"):
        merge_state_dicts(base, experts, "precision_weighted", variances=[{}])
