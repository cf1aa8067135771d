"""Mathematical properties of every registered method at once.

Exceptions are stated in one table: a method is left out of a property only where its definition rules it out.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_merge import merge_state_dicts, methods
from tests.fixtures.models import family, same, state_dict

METHODS = methods.names()
NAME = "encoder.layers.0.feed_forward1.linear1.weight"

# Parameters under which a method neither drops nor flattens anything.
LOSSLESS = {
    "ties": {"density": 1.0},
    "tsvm": {"rank_fraction": 1.0},
    "boosted_tsvm": {"rank_fraction": 1.0, "beta": 1.0},
}

# Newton-Schulz brings singular values near 1, not to it: exact statements need the exact polar factor.
EXACT = {name: {"orthogonalizer": "polar"} for name in ("tsvm", "boosted_tsvm")}


def merged(method: str, base: torch.Tensor, experts: list[torch.Tensor], **parameters) -> torch.Tensor:
    """Merges one matrix in float64."""
    result = merge_state_dicts({NAME: base}, [{NAME: expert} for expert in experts], method, **parameters)
    return result[NAME]


def random_deltas(rows: int, columns: int, experts: int, seed: int = 0, size: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [size * torch.randn(rows, columns, generator=generator, dtype=torch.float64) for _ in range(experts)]


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float, scale: torch.Tensor | None = None) -> bool:
    reference = float((b if scale is None else scale).norm()) or 1.0
    return float((a - b).norm()) <= tolerance * reference


@pytest.mark.parametrize("method", METHODS)
def test_experts_equal_to_the_base_give_the_base(method):
    base = state_dict()
    assert same(merge_state_dicts(base, [base, state_dict(), state_dict()], method), base)


@pytest.mark.parametrize("method", METHODS)
def test_one_expert_without_losses_is_returned(method):
    base = torch.randn(12, 8, dtype=torch.float64)
    (delta,) = random_deltas(12, 8, 1)
    parameters = {**LOSSLESS.get(method, {}), **EXACT.get(method, {})}
    assert close(merged(method, base, [base + delta], scale=1.0, **parameters), base + delta, 1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (9, 9)])
def test_copies_of_one_expert_give_what_it_gives_alone(method, shape):
    base = torch.randn(*shape, dtype=torch.float64)
    (delta,) = random_deltas(*shape, 1)
    parameters = dict(EXACT.get(method, {}))
    if method in ("tsvm", "boosted_tsvm"):
        parameters["rank_fraction"] = 0.25  # the default depends on the number of experts
    if method == "task_arithmetic":  # the sum of three copies is three times one of them
        three, one = {"scale": 1 / 3}, {"scale": 1.0}
    else:
        three, one = {}, {}
    together = merged(method, base, [base + delta] * 3, **parameters, **three)
    assert close(together, merged(method, base, [base + delta], **parameters, **one), 1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_scale_of_zero_gives_the_base(method):
    base, experts = family()
    assert same(merge_state_dicts(base, experts, method, scale=0.0), base)


@pytest.mark.parametrize("method", METHODS)
def test_the_scale_multiplies_the_change(method):
    base = torch.randn(10, 6, dtype=torch.float64)
    experts = [base + delta for delta in random_deltas(10, 6, 3)]
    change = merged(method, base, experts, scale=1.0) - base
    assert close(merged(method, base, experts, scale=0.3) - base, 0.3 * change, 1e-12, base)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0]])
def test_the_order_of_experts_does_not_matter(method, weights):
    base = torch.randn(10, 14, dtype=torch.float64)
    experts = [base + delta for delta in random_deltas(10, 14, 3)]
    first = merged(method, base, experts, weights=weights)
    for order in itertools.permutations(range(3)):
        shuffled = weights and [weights[index] for index in order]
        assert close(merged(method, base, [experts[index] for index in order], weights=shuffled), first, 1e-11)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1e-6, 1e3])
def test_the_change_is_proportional_to_the_task_vectors(method, size):
    """No absolute tolerance: tiny changes are merged like large ones."""
    deltas = random_deltas(16, 10, 3)
    base = torch.zeros(16, 10, dtype=torch.float64)
    change = merged(method, base, deltas)
    assert close(merged(method, base, [size * delta for delta in deltas]), size * change, 1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_the_change_does_not_depend_on_where_the_base_is(method):
    deltas = random_deltas(10, 12, 3)
    base, offset = torch.randn(2, 10, 12, dtype=torch.float64)
    change = merged(method, base, [base + delta for delta in deltas]) - base
    moved = merged(method, base + offset, [base + offset + delta for delta in deltas]) - base - offset
    assert close(moved, change, 1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("parameters", [{}, {"scope": "model"}], ids=["defaults", "whole model"])
def test_the_result_does_not_depend_on_workers_or_other_tensors(method, parameters):
    if "scope" not in [item.name for item in methods.parameters(methods.method_class(method))]:
        parameters = {}
    base, experts = family()
    first = merge_state_dicts(base, experts, method, workers=1, **parameters)
    assert same(merge_state_dicts(base, experts, method, workers=5, **parameters), first)
    if not parameters:
        alone = merge_state_dicts({NAME: base[NAME]}, [{NAME: expert[NAME]} for expert in experts], method)
        assert torch.equal(alone[NAME], first[NAME])


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_left_alone(method):
    base, experts = family()
    merge_state_dicts(base, experts, method)
    base_again, experts_again = family()
    assert same(base, base_again)
    assert all(same(a, b) for a, b in zip(experts, experts_again, strict=True))


SPECTRAL = [name for name in METHODS if issubclass(methods.method_class(name), methods.SpectralMethod)]
ROTATION_INVARIANT = [*SPECTRAL, "soup", "task_arithmetic"]


@pytest.mark.parametrize("method", METHODS)
def test_rotation_equivariance_is_a_property_of_spectral_and_linear_methods_only(method):
    deltas = random_deltas(9, 14, 3)
    left = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(14, 14, dtype=torch.float64))[0]
    base = torch.zeros(9, 14, dtype=torch.float64)
    rotated = merged(method, base, [left @ delta @ right for delta in deltas])
    equivariant = close(rotated, left @ merged(method, base, deltas) @ right, 1e-8)
    assert equivariant == (method in ROTATION_INVARIANT)


@pytest.mark.parametrize("method", SPECTRAL)
def test_transposed_task_vectors_give_the_transposed_change(method):
    deltas = random_deltas(9, 14, 3)
    change = merged(method, torch.zeros(9, 14, dtype=torch.float64), deltas)
    transposed = merged(method, torch.zeros(14, 9, dtype=torch.float64), [delta.mT.contiguous() for delta in deltas])
    assert close(transposed, change.mT, 1e-9)


@pytest.mark.parametrize("method", SPECTRAL)
def test_a_pointwise_convolution_is_a_matrix(method):
    base, experts = family()
    name = "encoder.layers.0.conv.pointwise_conv1.weight"
    whole = merge_state_dicts(base, experts, method)
    flat = merged(method, base[name].squeeze(-1), [expert[name].squeeze(-1) for expert in experts])
    assert torch.equal(whole[name].squeeze(-1), flat)


@pytest.mark.parametrize("method", SPECTRAL)
def test_what_is_no_matrix_takes_the_mean(method):
    base, experts = family()
    result = merge_state_dicts(base, experts, method, scale=0.5)
    for name in (
        "encoder.layers.0.conv.depthwise_conv.weight",
        "decoder.decoder_layers.0.weight",
        "decoder.decoder_layers.0.bias",
    ):
        mean = base[name] + 0.5 * torch.stack([expert[name] - base[name] for expert in experts]).mean(0)
        torch.testing.assert_close(result[name], mean)


SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25, deadline=None)
@given(
    shape=SHAPES,
    experts=st.integers(1, 4),
    seed=st.integers(0, 1000),
    size=st.sampled_from([1e-8, 1e-3, 1.0]),
    kind=st.sampled_from(["full", "rank one", "duplicates", "one is zero", "all zero"]),
)
def test_any_shape_and_any_task_vectors_give_a_finite_bounded_result(method, shape, experts, seed, size, kind):
    deltas = random_deltas(*shape, experts, seed, size)
    if kind == "rank one":
        deltas = [delta[:, :1] @ delta[:1] for delta in deltas]
    elif kind == "duplicates":
        deltas = [deltas[0]] * experts
    elif kind in ("one is zero", "all zero"):
        deltas = [
            torch.zeros_like(delta) if kind == "all zero" or index == 0 else delta for index, delta in enumerate(deltas)
        ]
    base = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    result = merged(method, base, [base + delta for delta in deltas])
    assert torch.isfinite(result).all()
    largest = sum(float((base + delta - base).norm()) for delta in deltas)
    # Boosting raises singular values, at most to the largest of its expert.
    bound = largest * (min(shape) ** 0.5 if method == "boosted_tsvm" else 1.0) * 1.3112
    assert float((result - base).norm()) <= bound + 1e-12
    if kind == "all zero":
        assert torch.equal(result, base)


def test_soup_is_task_arithmetic_with_one_over_the_number_of_experts():
    base, experts = family()
    soup, arithmetic = merge_state_dicts(base, experts, "soup"), merge_state_dicts(base, experts, "task_arithmetic")
    for name in base:
        torch.testing.assert_close(soup[name], arithmetic[name], rtol=1e-6, atol=1e-7)


def test_soup_needs_no_base():
    base, experts = family()
    assert same(merge_state_dicts(None, experts, "soup", batch_norm="average"), merge_state_dicts(base, experts, "soup") | {
        name: experts[0][name] for name in base if name.endswith("num_batches_tracked")
    })  # fmt: skip


def test_task_arithmetic_with_a_negative_weight_forgets():
    base, (expert, other, _) = family()
    result = merge_state_dicts(base, [expert, other], "task_arithmetic", weights=[1, -1], scale=1.0)
    torch.testing.assert_close(result[NAME], base[NAME] + expert[NAME] - other[NAME])
