"""Merging low-rank changes in the space that they span gives what merging the dense task vectors in float64 gives.

The adapters are those of Bayesian LoRA, which for most methods are nothing but LoRA.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_merge import merge_state_dicts, methods
from nemo_merge.checkpoints import AdapterCheckpoint, StateDictCheckpoint
from nemo_merge.low_rank import LowRank, compress
from nemo_merge.merging import combine, execute, plan_merge
from nemo_merge.merging.blocks import BLOCK_ELEMENTS
from nemo_merge.merging.factored import cores_of, inner_products
from nemo_merge.methods import CoreVectors, Gram, TaskVectors
from tests.fixtures.posteriors import bayesian_folder
from tests.methods.test_properties import ROTATION_INVARIANT

METHODS = methods.names()
POSTERIORS = [name for name in METHODS if methods.get(name).uses_posteriors]
MATRIX, TALL, POINTWISE, CONV = "encoder.q", "encoder.up", "encoder.conv.pointwise_conv1", "encoder.sub.conv"
SHAPES = {MATRIX: (40, 40), TALL: (60, 32), POINTWISE: (24, 30, 1), CONV: (16, 10, 3)}
RANKS = ((3, 2, 4), (4, 0, 2), (1, 5, 3), (2, 2, 2))
"""Ranks of the three experts for every tensor; 0: the expert does not adapt it."""

# Settings under which a method is rotation-equivariant where it is not by default, and others worth a look.
SETTINGS = [
    *((name, {}) for name in METHODS),
    ("boosted_tsvm", {"rank_fraction": 1.0, "beta": 0.5, "energy_power": 2}),
    ("boosted_tsvm", {"rank_fraction": 0.05, "energy_scope": "kept", "orthogonalizer": "gram_polar"}),
    ("tsvm", {"rank_fraction": 1.0, "orthogonalizer": "polar"}),
    ("tsvm", {"rank_fraction": 0.05, "schedule": "polar_express"}),
    ("boosted_tsvm", {"conv_as_matrix": True}),
    ("iso_c", {"conv_as_matrix": True}),
    ("iso_cts", {"common_fraction": 0.05, "orthogonalizer": "newton_schulz"}),
    ("iso_cts", {"common_fraction": 1.0}),
    ("cart", {"rank_fraction": 0.03}),
    ("cart", {"rank_fraction": 1.0, "scale": 0.4}),
    ("star", {"energy": 0.9}),
    ("lors", {"density": 0.0}),
    ("lors", {"density": 0.0, "rank": 2}),
    ("knots", {"combine": "linear"}),
    ("wudi", {"solver": "closed"}),
    ("wudi", {"solver": "adam", "steps": 3}),
    ("karcher", {"space": "task_vectors"}),
    ("multislerp", {"space": "task_vectors"}),
    ("model_stock", {"granularity": "row"}),
    ("slerp", {"t": 0.3, "granularity": "row"}),
    ("soup", {"scale": 1.7}),
]
TOLERANCE = 1e-10


def experts(tmp_path: Path, count: int, base, size: float = 1e-3, ranks=RANKS, shapes=SHAPES) -> list:
    """Adapters of the ranks above, bound to the base; their spreads go with their size."""
    generator = torch.Generator().manual_seed(0)
    checkpoint = StateDictCheckpoint(base, "base")
    found = []
    for expert in range(count):
        factors = {}
        for (module, (rows, columns, *kernel)), some in zip(shapes.items(), ranks, strict=True):
            if rank := some[expert]:
                spread = torch.linspace(1, 2, rank, dtype=torch.float64) ** 2  # no two singular values alike
                b = size * spread * torch.randn(rows, rank, generator=generator).double()
                a = torch.randn(rank, columns, *kernel, generator=generator).double()
                factors[module] = (b.view(rows, rank, *[1] * len(kernel)), a)
        folder = bayesian_folder(tmp_path / str(expert), factors, seed=expert, spread=math.log(0.1 * size))
        found.append(AdapterCheckpoint(folder).bind(checkpoint))
    return found


def base_model() -> dict:
    generator = torch.Generator().manual_seed(1)
    return {f"{name}.weight": 0.05 * torch.randn(shape, generator=generator).double() for name, shape in SHAPES.items()}


def dense_models(base, bound) -> tuple[list[dict], list[dict]]:
    """The experts as whole models, and the variances of their weights."""
    models = [{tensor: expert[tensor] for tensor in base} for expert in bound]
    variances = [{name: expert.posterior(name).variances_like(base[name]) for name in base} for expert in bound]
    return models, variances


def factored(base, bound, method: methods.Method, **options) -> tuple[dict, set[str]]:
    """The merge as the engine does it, and the tensors that it merged by cores."""
    plan = plan_merge(StateDictCheckpoint(base, "base"), bound, method, workers=1, **options)
    writer = plan.template.writer(Path(), plan.output_specs, {})
    execute(plan, writer, workers=1)
    writer.commit()
    return writer.state_dict, {row.name for row in plan.rows if cores_of(plan, row) is not None}


def difference(found, expected, base) -> float:
    """Largest relative difference of a tensor's change."""
    differences = []
    for name in base:
        change = expected[name] - base[name]
        error = torch.linalg.vector_norm(found[name] - expected[name])
        # The sum with the base is rounded once more than the change: that is no error of the change.
        rounding = 1e-16 * torch.linalg.vector_norm(base[name])
        differences.append(float((error - rounding).clamp_min(0) / torch.linalg.vector_norm(change).clamp_min(1e-300)))
    return max(differences)


@pytest.mark.parametrize("weights", [None, (1.0, -0.5, 2.0)], ids=["equal", "weighted"])
@pytest.mark.parametrize(("name", "values"), SETTINGS, ids=str)
def test_factored_is_dense(tmp_path, name, values, weights):
    count = methods.method_class(name).maximum_experts or 3
    if weights is not None:
        weights = (1.0, 2.0) if count == 2 else tuple(map(abs, weights)) if name in POSTERIORS else weights
    method = methods.get(name, weights=weights, **values)
    base = base_model()
    bound = experts(tmp_path, count, base)
    found, by_cores = factored(base, bound, method)
    dense, variances = dense_models(base, bound)
    expected = merge_state_dicts(base, dense, method, workers=1, variances=variances)
    assert difference(found, expected, base) < TOLERANCE
    assert bool(by_cores) == method.rotation_equivariant
    if method.rotation_equivariant:
        assert by_cores == set(base)


@pytest.mark.parametrize("name", METHODS)
def test_equivariance_is_declared(name):
    """The declaration agrees with the property test that turns task vectors."""
    assert methods.get(name).rotation_equivariant == (name in ROTATION_INVARIANT)


@pytest.mark.parametrize("name", [name for name in METHODS if methods.get(name).rotation_equivariant])
@pytest.mark.parametrize("size", [1e-6, 1.0])
def test_any_size_and_full_rank(tmp_path, name, size):
    """Changes far below the weights' own size; ranks that together exceed the sides."""
    count = methods.method_class(name).maximum_experts or 3
    base = base_model()
    bound = experts(tmp_path, count, base, size, ranks=((20, 25, 30), (32, 20, 1), (24, 0, 3), (2, 9, 9)))
    method = methods.get(name)
    found, _ = factored(base, bound, method)
    # What would be dense is taken as difference to a base of zeros, so that it holds all digits; methods that look at
    # the directions of weights need the base.
    exact = [{tensor: expert.low_rank(tensor).rows().view(base[tensor].shape) for tensor in base} for expert in bound]
    if name in ("karcher", "multislerp", "slerp"):
        dense = [{tensor: base[tensor] + change[tensor] for tensor in base} for change in exact]
        expected = merge_state_dicts(base, dense, method, workers=1)
    else:
        zeros = {tensor: torch.zeros_like(value) for tensor, value in base.items()}
        expected = merge_state_dicts(zeros, exact, method, workers=1)
        expected = {tensor: base[tensor] + value for tensor, value in expected.items()}
    assert difference(found, expected, base) < max(TOLERANCE, 1e-15 / size)


class Largest(TorchDispatchMode):
    """Notes the number of entries of the largest float64 tensor that any operation of torch gives."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        found = function(*arguments, **(keywords or {}))
        for tensor in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                self.entries = max(self.entries, tensor.numel())
        return found


@pytest.mark.parametrize("name", [name for name in METHODS if methods.get(name).rotation_equivariant] + POSTERIORS)
def test_no_matrix_is_multiplied_out_at_once(tmp_path, name, monkeypatch):
    """Nothing in float64 is as large as a matrix of the model, only the blocks of rows that are written."""
    shapes = {MATRIX: (640, 800)}
    base = {f"{MATRIX}.weight": torch.randn(shapes[MATRIX])}
    bound = experts(tmp_path, methods.method_class(name).maximum_experts or 3, base, ranks=RANKS[:1], shapes=shapes)
    plan = plan_merge(StateDictCheckpoint(base, "base"), bound, methods.get(name), workers=1)
    writer = plan.template.writer(Path(), plan.output_specs, {})
    monkeypatch.setattr(combine, "in_threads", lambda count, task, *_: [task(index) for index in range(count)])
    with Largest() as largest:
        execute(plan, writer, workers=1)
    limit = BLOCK_ELEMENTS * (len(bound) if name in POSTERIORS else 1)  # which sees the rows of all experts at once
    assert 0 < largest.entries <= limit < 640 * 800 / 2


@pytest.mark.parametrize("then", [["lines"], ["subspace_boost"]])
@pytest.mark.parametrize("name", ["tsvm", "task_arithmetic", "ties"])
def test_post_processors(tmp_path, name, then):
    base = base_model()
    bound = experts(tmp_path, 3, base)
    dense = [{tensor: expert[tensor] for tensor in base} for expert in bound]
    found, _ = factored(base, bound, methods.get(name), then=then)
    assert difference(found, merge_state_dicts(base, dense, name, then=then, workers=1), base) < TOLERANCE


@pytest.mark.parametrize("name", METHODS)
def test_adapters_beside_full_models(tmp_path, name):
    """One expert is a whole model: nothing is merged by cores, and adapters come unrounded."""
    base = base_model()
    count = methods.method_class(name).maximum_experts or 3
    *bound, last = experts(tmp_path, count, base)
    dense, variances = dense_models(base, [*bound, last])
    whole = StateDictCheckpoint(dense[-1], "whole", variances[-1])
    found, by_cores = factored(base, [*bound, whole], methods.get(name))
    assert not by_cores
    expected = merge_state_dicts(base, dense, name, workers=1, variances=variances)
    assert difference(found, expected, base) < TOLERANCE


@pytest.mark.parametrize("name", ["ties", "tsvm", "lors", "knots", "karcher", "model_stock"])
def test_weights_stored_in_float32_do_not_round_the_task_vectors(tmp_path, name):
    """Changes of a millionth of the weights, which float32 sums would lose: the change comes out to float32 precision."""
    base64 = {tensor: value.float().double() for tensor, value in base_model().items()}
    base32 = {tensor: value.float() for tensor, value in base64.items()}
    method = methods.get(name, scale=1e5) if name != "karcher" else methods.get(name, scale=1e5, space="task_vectors")
    exact, _ = factored(base64, experts(tmp_path, 3, base64, 1e-8), method)
    found, _ = factored(base32, experts(tmp_path, 3, base32, 1e-8), method)
    for tensor, value in exact.items():
        assert torch.equal(found[tensor], value.float())


def test_cores_keep_inner_products():
    generator = torch.Generator().manual_seed(0)
    matrices = [
        LowRank(
            torch.randn(30, rank, generator=generator).double(), torch.randn(rank, 20, generator=generator).double()
        )
        for rank in (2, 0, 5)
    ]
    base = torch.randn(30, 20, generator=generator)
    cores = compress(matrices)
    for matrix, core in zip(matrices, cores.cores, strict=True):
        torch.testing.assert_close(cores.expand(core).rows(), matrix.rows())
    vectors = torch.stack([base.double(), *(matrix.rows() for matrix in matrices)]).flatten(1)
    torch.testing.assert_close(inner_products(base, cores), vectors @ vectors.mT)
    assert Gram(inner_products(base, cores)).experts == 3


def test_core_vectors_know_the_shape_of_the_tensor():
    matrices = [LowRank(torch.ones(30, 2).double(), torch.ones(2, 20).double())]
    vectors: TaskVectors = CoreVectors(compress(matrices), torch.tensor([2.0], dtype=torch.float64))
    assert vectors.shape == (30, 20)
    assert vectors.zeros().shape == vectors[0].shape == (2, 2)
    assert vectors.noise() == vectors.noise(0) == 0
    assert float(vectors.sum().norm()) == pytest.approx(4 * 600**0.5)
