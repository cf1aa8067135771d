"""Merges the task vectors of adapters in the small space that they span, without multiplying them out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..low_rank import Cores, LowRank, compress
from ..methods import Block, CoreVectors, Gram, Method, SpanMethod, SpectralMethod
from .blocks import BLOCK_ELEMENTS
from .plan import MergePlan, Row, Treatment


@dataclass(frozen=True)
class FactoredChange:
    """A merged task vector: a share of the base plus a matrix of low rank.

    Attributes:
        of_base: factor on the base; 0 but for methods that work on directions of weights.
        matrix: the low-rank part, in float64.
    """

    of_base: float
    matrix: LowRank

    def rows(self, base: Tensor, part: slice) -> Float[Tensor, "*shape"]:
        """Rows of the merged task vector."""
        rows = self.matrix.rows(part).view(base[part].shape)
        return rows.add_(base[part], alpha=self.of_base) if self.of_base else rows


def cores_of(plan: MergePlan, row: Row) -> Cores | None:
    """The task vectors of a row in common bases, or None where it has to be merged from the tensors themselves.

    That is where an expert is not known by its factors, or the method looks at single entries.
    """
    if row.treatment not in (Treatment.METHOD, Treatment.MEAN) or not row.method.rotation_equivariant:
        return None
    if len(row.spec.shape) < 2:
        return None
    changes = []
    for expert in plan.experts:
        change = expert.low_rank(row.name)
        if change is None:
            return None
        changes.append(change.to(plan.template[row.name].device))
    return compress(changes)


def factored_changes(
    plan: MergePlan, rows: Sequence[tuple[int, Row]], cores: Cores
) -> Iterator[tuple[int, FactoredChange]]:
    """The merged task vector of a row for every variant of its method, before ``scale``.

    Ranks are shares of the tensor's own shorter side, as without factors; the result is the same up to rounding.
    """
    row = rows[0][1]
    method, weights = row.method, row.method.resolved_weights(len(plan.experts))
    if row.treatment is Treatment.METHOD and isinstance(method, SpectralMethod):
        shared = method.factors(CoreVectors(cores, weights))
        for place, variant in rows:
            assert isinstance(variant.method, SpectralMethod)
            yield place, FactoredChange(0.0, cores.expand(variant.method.assemble(shared)))
        return
    if row.treatment is Treatment.METHOD and isinstance(method, SpanMethod):
        products = inner_products(plan.template[row.name], cores)
        of_base, *shares = method.coefficients(Gram(products), weights).tolist()
        core = torch.einsum("t,tpq->pq", cores.cores.new_tensor(shares), cores.cores)
    else:
        of_base, core = 0.0, _combined(method, row, cores, weights)
    change = FactoredChange(of_base, cores.expand(core))
    for place, _ in rows:
        yield place, change


def by_cores(
    plan: MergePlan, rows: Sequence[tuple[int, Row]], cores: Cores, *, whole: bool
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For every variant, blocks of rows of the base and of the merged task vector; one block if ``whole``."""
    base = plan.template[rows[0][1].name]
    step = base.shape[0] if whole else max(1, BLOCK_ELEMENTS * base.shape[0] // max(base.numel(), 1))
    for place, change in factored_changes(plan, rows, cores):
        for first in range(0, base.shape[0], step):
            part = slice(first, first + step)
            yield place, base[part], change.rows(base, part)


def inner_products(base: Float[Tensor, "*shape"], cores: Cores) -> Float[Tensor, "vectors vectors"]:
    """Inner products of the base and the task vectors, in float64, on the CPU."""
    flat = base.reshape(base.shape[0], -1)
    square, projected = 0.0, torch.zeros_like(cores.cores[0])
    step = max(1, BLOCK_ELEMENTS // max(flat.shape[1], 1))
    for first in range(0, len(flat), step):
        rows = flat[first : first + step].double()
        square += float(rows.square().sum())
        projected += cores.left[first : first + step].mT @ (rows @ cores.right.mT)
    deltas = cores.cores.flatten(1)
    products = torch.empty(len(deltas) + 1, len(deltas) + 1, dtype=torch.float64)
    products[0, 0] = square
    products[0, 1:] = products[1:, 0] = deltas @ projected.flatten()
    products[1:, 1:] = deltas @ deltas.mT
    return products


def _combined(method: Method, row: Row, cores: Cores, weights: Tensor) -> Tensor:
    """What a method that is linear in the task vectors, or its mean for the rest, makes of the cores."""
    block = Block(torch.zeros_like(cores.cores[0]), cores.cores, 0, row.name)
    if row.treatment is Treatment.MEAN:
        return method.rest(block, weights)
    return method.combine_block(block, weights, None)
