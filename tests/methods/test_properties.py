"""Mathematical properties of every registered method at once.

Exceptions are stated in one table: a method is left out of a property only where its definition rules it out.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_merge import methods
from nemo_merge.errors import PlanError
from nemo_merge.merging import blocks
from tests.fixtures.models import family, same, state_dict
from tests.fixtures.posteriors import merge_state_dicts

METHODS = methods.names()
NAME = "encoder.layers.0.feed_forward1.linear1.weight"
CLASSES = {name: methods.method_class(name) for name in METHODS}
SPECTRAL = [name for name in METHODS if issubclass(CLASSES[name], methods.SpectralMethod)]

# Parameters under which a method neither drops nor flattens anything.
LOSSLESS = {
    "boosted_tsvm": {"rank_fraction": 1.0, "beta": 1.0},
    "breadcrumbs": {"density": 1.0, "outliers": 0.0},
    "cart": {"rank_fraction": 1.0},
    "dare": {"density": 1.0},
    "della": {"density": 1.0, "epsilon": 0.0},
    "knots": {"density": 1.0},
    "lors": {"density": 1.0},
    "star": {"energy": 1.0},
    "ties": {"density": 1.0},
    "tsvm": {"rank_fraction": 1.0},
}

# Newton-Schulz brings singular values near 1, not to it: exact statements need the exact polar factor.
EXACT = {name: {"orthogonalizer": "polar"} for name in ("tsvm", "boosted_tsvm")}

# The exceptions: what the definition of a method rules out, and why.
EXCEPTIONS = {
    "one expert comes back": {
        "iso_c": "levels the spectrum",
        "iso_cts": "levels the spectrum",
        "pcb": "the entry of lowest score always gets nothing",
    },
    "copies change nothing": {
        "dare": "every copy draws its own random numbers",
        "della": "every copy draws its own random numbers",
        "iso_c": "adds the copies up",
        "iso_cts": "the number of experts divides the directions",
    },
    "scale": {"cart": "scale multiplies the part beyond the mean"},
    "order": {
        "dare": "random numbers belong to the place in the list",
        "della": "random numbers belong to the place in the list",
    },
    "size": {"pcb": "tanh of the product of task vectors"},
    "base": {
        "karcher": "directions of weights",
        "multislerp": "directions of weights",
        "slerp": "directions of weights",
    },
    "bounded": {
        "nuslerp": "between nearly opposite vectors of unequal norm the arc leaves their neighbourhood",
        "slerp": "the same, for weights of small tensors",
        "wudi": "experts of nearly parallel inputs are all to be met exactly",
    },
    "transposition": {
        "iso_cts": "projects the common directions out on the left only",
        "knots": "aligns the columns only",
        "wudi": "rows stand in for inputs",
    },
}

ROTATION_INVARIANT = {*SPECTRAL} - {"lors", "knots"} | {
    "soup", "task_arithmetic", "karcher", "multislerp", "model_stock", "slerp", "nuslerp",
}  # fmt: skip


def all_but(exceptions: str) -> list[str]:
    """The methods that have the property."""
    return [name for name in METHODS if name not in EXCEPTIONS[exceptions]]


def count(method: str) -> int:
    """A number of experts that the method takes."""
    return CLASSES[method].maximum_experts or 3


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
    assert same(merge_state_dicts(base, [state_dict() for _ in range(count(method))], method), base)


@pytest.mark.parametrize(
    "method", [name for name in all_but("one expert comes back") if CLASSES[name].minimum_experts < 2]
)
def test_one_expert_without_losses_is_returned(method):
    base = torch.randn(12, 8, dtype=torch.float64)
    (delta,) = random_deltas(12, 8, 1)
    parameters = {**LOSSLESS.get(method, {}), **EXACT.get(method, {})}
    assert close(merged(method, base, [base + delta], scale=1.0, **parameters), base + delta, 1e-9)


@pytest.mark.parametrize("method", all_but("copies change nothing"))
@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (9, 9)])
def test_copies_of_one_expert_give_what_it_gives_alone(method, shape):
    base = torch.randn(*shape, dtype=torch.float64)
    (delta,) = random_deltas(*shape, 1)
    parameters = dict(EXACT.get(method, {}))
    if method in ("tsvm", "boosted_tsvm"):
        parameters["rank_fraction"] = 0.25  # the default depends on the number of experts
    together = merged(method, base, [base + delta] * count(method), **parameters)
    alone = base + delta if CLASSES[method].minimum_experts > 1 else merged(method, base, [base + delta], **parameters)
    assert close(together, alone, 1e-7 if method == "pcb" else 1e-9)  # pcb clips at quantiles in float32


@pytest.mark.parametrize("method", all_but("scale"))
def test_a_scale_of_zero_gives_the_base(method):
    base, experts = family()
    assert same(merge_state_dicts(base, experts[: count(method)], method, scale=0.0), base)


@pytest.mark.parametrize("method", all_but("scale"))
def test_the_scale_multiplies_the_change(method):
    base = torch.randn(10, 6, dtype=torch.float64)
    experts = [base + delta for delta in random_deltas(10, 6, count(method))]
    change = merged(method, base, experts, scale=1.0) - base
    assert close(merged(method, base, experts, scale=0.3) - base, 0.3 * change, 1e-12, base)


@pytest.mark.parametrize("method", all_but("order"))
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0]])
def test_the_order_of_experts_does_not_matter(method, weights):
    base, experts = torch.randn(10, 14, dtype=torch.float64), count(method)
    weights = weights and weights[:experts]
    models = [base + delta for delta in random_deltas(10, 14, experts)]
    first = merged(method, base, models, weights=weights)
    for order in itertools.permutations(range(experts)):
        shuffled = weights and [weights[index] for index in order]
        assert close(merged(method, base, [models[index] for index in order], weights=shuffled), first, 1e-11)


@pytest.mark.parametrize("method", all_but("size"))
@pytest.mark.parametrize("size", [1e-6, 1e3])
def test_the_change_is_proportional_to_the_task_vectors(method, size):
    """No absolute tolerance: tiny changes are merged like large ones."""
    deltas = random_deltas(16, 10, count(method))
    base = torch.zeros(16, 10, dtype=torch.float64)
    change = merged(method, base, deltas)
    assert close(merged(method, base, [size * delta for delta in deltas]), size * change, 1e-8)


@pytest.mark.parametrize("method", all_but("base"))
def test_the_change_does_not_depend_on_where_the_base_is(method):
    deltas = random_deltas(10, 12, count(method))
    base, offset = torch.randn(2, 10, 12, dtype=torch.float64)
    change = merged(method, base, [base + delta for delta in deltas]) - base
    moved = merged(method, base + offset, [base + offset + delta for delta in deltas]) - base - offset
    assert close(moved, change, 1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("parameters", [{}, {"scope": "model"}], ids=["defaults", "whole model"])
def test_the_result_does_not_depend_on_workers_or_other_tensors(method, parameters):
    if "scope" not in [item.name for item in methods.parameters(CLASSES[method])]:
        parameters = {}
    base, experts = family()
    experts = experts[: count(method)]
    first = merge_state_dicts(base, experts, method, workers=1, **parameters)
    assert same(merge_state_dicts(base, experts, method, workers=5, **parameters), first)
    if not parameters:
        alone = merge_state_dicts({NAME: base[NAME]}, [{NAME: expert[NAME]} for expert in experts], method)
        assert torch.equal(alone[NAME], first[NAME])


@pytest.mark.parametrize("method", METHODS)
def test_the_result_does_not_depend_on_how_a_tensor_is_cut(method, monkeypatch):
    base, experts = family()
    experts = experts[: count(method)]
    whole = merge_state_dicts(base, experts, method)
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 16)
    cut = merge_state_dicts(base, experts, method)
    for name in base:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_left_alone(method):
    base, experts = family()
    merge_state_dicts(base, experts[: count(method)], method)
    base_again, experts_again = family()
    assert same(base, base_again)
    assert all(same(a, b) for a, b in zip(experts, experts_again, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_another_number_of_experts_than_the_method_takes_is_refused(method):
    base, experts = family()
    for wrong in (CLASSES[method].minimum_experts - 1, (CLASSES[method].maximum_experts or 99) + 1):
        if wrong <= 3:
            with pytest.raises(PlanError, match=f"{method} (needs|takes)"):
                merge_state_dicts(base, experts[:wrong], method)


@pytest.mark.parametrize("method", METHODS)
def test_a_base_is_asked_for_exactly_where_it_is_needed(method):
    base, experts = family()
    experts = experts[: count(method)]
    if CLASSES[method]().requires_base(len(experts)):
        with pytest.raises(PlanError, match="needs a base"):
            merge_state_dicts(None, experts, method)
        return
    alone, beside = merge_state_dicts(None, experts, method), merge_state_dicts(base, experts, method)
    for name in base:
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(alone[name], beside[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_rotation_equivariance_is_a_property_of_spectral_and_linear_methods_only(method):
    deltas = random_deltas(9, 14, count(method))
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
    assert close(transposed, change.mT, 1e-7) == (method not in EXCEPTIONS["transposition"])


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
    factor = {"lors": 1.5, "cart": 1.0}.get(method, 0.5)  # LoRS takes the sum, CART the mean whatever the scale
    for name in (
        "encoder.layers.0.conv.depthwise_conv.weight",
        "decoder.decoder_layers.0.weight",
        "decoder.decoder_layers.0.bias",
    ):
        mean = base[name] + factor * torch.stack([expert[name] - base[name] for expert in experts]).mean(0)
        torch.testing.assert_close(result[name], mean)


@pytest.mark.parametrize("method", SPECTRAL)
def test_convolutions_of_larger_kernels_are_matrices_on_request(method):
    name, flat = "encoder.pre_encode.conv.2.weight", "encoder.layers.0.linear.weight"
    base = torch.randn(8, 6, 3, dtype=torch.float64)
    experts = [base + delta.view(8, 6, 3) for delta in random_deltas(8, 18, 3)]
    as_matrix = merge_state_dicts({name: base}, [{name: e} for e in experts], method, conv_as_matrix=True)[name]
    matrix = merge_state_dicts({flat: base.flatten(1)}, [{flat: e.flatten(1)} for e in experts], method)[flat]
    assert torch.equal(as_matrix.flatten(1), matrix)
    assert not close(merge_state_dicts({name: base}, [{name: e} for e in experts], method)[name], as_matrix, 1e-6)


# How much larger than the sum of the norms of the task vectors the change may be, where it is more than 1.
BOUNDS = {
    "boosted_tsvm": 1.3112 * 3,  # singular values are raised, at most to the largest of their expert; quintic overshoot
    "cart": 3.0,  # the mean, and the differences to it
    "dare": 2.0,  # one over the density
    "della": 2.5,  # one over the least probability
    "iso_cts": 2**0.5,  # values of the sum and of each expert
    "lors": 2**0.5,  # low rank plus sparse
    "star": 2.5,  # one over the energy
    "tsvm": 1.3112,
}

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25, deadline=None)
@given(
    shape=SHAPES,
    draw=st.data(),
    seed=st.integers(0, 1000),
    size=st.sampled_from([1e-8, 1e-3, 1.0]),
    kind=st.sampled_from(["full", "rank one", "duplicates", "one is zero", "all zero"]),
)
def test_any_shape_and_any_task_vectors_give_a_finite_bounded_result(method, shape, draw, seed, size, kind):
    experts = draw.draw(st.integers(CLASSES[method].minimum_experts, CLASSES[method].maximum_experts or 4))
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
    bounded = method not in EXCEPTIONS["bounded"]
    assert not bounded or float((result - base).norm()) <= BOUNDS.get(method, 1.0) * largest * (1 + 1e-6) + 1e-12
    if kind == "all zero":
        assert torch.equal(result, base)


def test_task_arithmetic_with_a_negative_weight_forgets():
    base, (expert, other, _) = family()
    result = merge_state_dicts(base, [expert, other], "task_arithmetic", weights=[1, -1], scale=1.0)
    torch.testing.assert_close(result[NAME], base[NAME] + expert[NAME] - other[NAME])
