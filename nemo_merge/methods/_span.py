"""Methods whose result is a linear combination of the inputs: they need inner products only."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import MergeError
from ._blocks import Block, Blocks
from ._method import Method
from ._parameters import parameter

Space = Literal["weights", "task_vectors"]

_OPPOSITE = 1e-3
"""Vectors whose angle is nearer to pi than this, in radians, count as opposite."""

_FEW = 8

_DIRECTION = 1e-7
"""Length below which a sum of unit vectors is rounding: inner products in float64 give it to 1e-8."""


class Gram:
    """Inner products of base and task vectors, in float64, and vectors in their span.

    A vector of the span is given by its coefficients on (base, task vectors); ``weights`` of the experts themselves are
    base plus task vector. Differences between experts are differences of task vectors and lose no digits.
    """

    def __init__(self, products: Float[Tensor, "*rows vectors vectors"]) -> None:
        self.products = products
        self.experts = products.shape[-1] - 1

    def vectors(self, space: str) -> Float[Tensor, "experts vectors"]:
        """Coefficients of the experts: of their weights, or of their task vectors."""
        eye = torch.eye(self.experts + 1, dtype=torch.float64)[1:]
        if space == "weights":
            eye[:, 0] = 1
        return eye

    def inner(self, a: Tensor, b: Tensor) -> Float[Tensor, "*rows"]:
        """Inner product of two vectors."""
        return torch.einsum("...i,...ij,...j->...", a, self.products, b)

    def norm(self, a: Tensor) -> Float[Tensor, "*rows"]:
        """Norm of a vector."""
        return self.inner(a, a).clamp_min(0).sqrt()


@dataclass(frozen=True)
class SpanMethod(Method):
    """A method that goes through the tensors once for inner products and once to combine them."""

    family: ClassVar[str] = "parameter space"

    @abstractmethod
    def coefficients(self, gram: Gram, weights: Float[Tensor, " experts"]) -> Float[Tensor, "*rows vectors"]:
        """Coefficients of the merged task vector on (base, task vectors)."""

    @property
    def rotation_equivariant(self) -> bool:
        return not self.by_row

    def statistics(self, blocks: Blocks, weights: Float[Tensor, " experts"]) -> Tensor | None:
        if self.by_row:
            return None
        products = torch.zeros(len(weights) + 1, len(weights) + 1, dtype=torch.float64)
        for block in blocks:
            products += _products(_vectors(block).flatten(1)).cpu()
        return self.coefficients(Gram(products), weights)

    def combine_block(
        self, block: Block, weights: Float[Tensor, " experts"], statistics: Tensor | None
    ) -> Float[Tensor, "*shape"]:
        if statistics is not None:
            first, others = float(statistics[0]), statistics[1:]
            change = block.weighted_sum(others)
            return change.add_(block.base, alpha=first) if first else change
        vectors = torch.cat([block.base[None], block.deltas])
        rows = _vectors(block).reshape(len(vectors), block.base.shape[0] if block.base.dim() > 1 else 1, -1)
        products = torch.einsum("trn,srn->rts", rows, rows).cpu()
        coefficients = self.coefficients(Gram(products), weights).to(vectors)
        return torch.einsum("rt,trn->rn", coefficients, vectors.reshape(rows.shape)).view_as(block.base)


@dataclass(frozen=True)
class DirectionMethod(SpanMethod):
    """A method that averages directions and norms apart, of weights or of task vectors."""

    space: Space = parameter("weights", "What the directions are of.")

    def requires_base(self, experts: int) -> bool:
        return self.space == "task_vectors" or self.resolved_scale(experts) != 1.0


def _vectors(block: Block) -> Float[Tensor, "vectors *shape"]:
    vectors = block.base.new_empty((len(block) + 1, *block.base.shape), dtype=torch.float64)
    vectors[0] = block.base
    for vector, expert in zip(vectors[1:], block.rows, strict=True):
        torch.sub(vector.copy_(expert), vectors[0], out=vector)
    return vectors


def _products(vectors: Float[Tensor, "vectors numbers"]) -> Float[Tensor, "vectors vectors"]:
    """Inner products; of few vectors one pair at a time, which is faster than a product of matrices of so few rows."""
    if len(vectors) > _FEW:
        return vectors @ vectors.mT
    products = vectors.new_empty(len(vectors), len(vectors))
    for one, vector in enumerate(vectors):
        for other in range(one + 1):
            products[one, other] = products[other, one] = torch.dot(vector, vectors[other])
    return products


def sine_ratio(share: Tensor | float, angle: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """``sin(share * angle) / sin(angle)``; its limit ``share`` at 0 and, for want of a direction, near pi.

    Between vectors that are opposite but for the rounding of stored weights, any great circle is as good as any other,
    and the quotient would multiply that rounding by a million.
    """
    usable = (angle > _DIRECTION) & (angle < torch.pi - _OPPOSITE)
    return torch.where(usable, (share * angle).sin() / torch.where(usable, angle.sin(), 1), share)


def directions(
    gram: Gram, shares: Float[Tensor, " experts"], space: Space
) -> tuple[Float[Tensor, "experts vectors"], Float[Tensor, " experts"], Float[Tensor, " experts"]]:
    """Unit vectors and norms of the experts that are not zero, with their shares."""
    vectors = gram.vectors(space)
    norms = torch.stack([gram.norm(vector) for vector in vectors])
    there = norms > 0
    return vectors[there] / norms[there, None], norms[there], shares[there]


def unit_mean(
    gram: Gram, units: Float[Tensor, "experts vectors"], shares: Float[Tensor, " experts"], name: str
) -> Float[Tensor, " vectors"]:
    """Direction of the weighted mean of unit vectors.

    Raises:
        MergeError: they cancel each other.
    """
    mean = (shares[:, None] * units).sum(0)
    length = gram.norm(mean)
    if length <= _DIRECTION * shares.abs().sum():
        raise MergeError(f"the merge by {name} has no mean direction: the experts point in opposite directions")
    return mean / length


def as_change(vector: Float[Tensor, "*rows vectors"], space: Space) -> Float[Tensor, "*rows vectors"]:
    """A merged vector as coefficients of the change from the base."""
    if space == "weights":
        vector = vector.clone()
        vector[..., 0] -= 1
    return vector
