"""CART: low-rank parts of what each expert has beyond the mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..linalg import leading_part
from ._blocks import Block, TaskVectors
from ._method import SpectralMethod
from ._parameters import parameter
from ._registry import register
from .soup import normalised


class _Factors(NamedTuple):
    mean: Float[Tensor, "rows columns"]
    beyond: Float[Tensor, "rows columns"]


@register
@dataclass(frozen=True)
class Cart(SpectralMethod):
    """Adds the leading singular triplets of every expert's difference to the mean of the experts.

    Choi et al., 2024, Revisiting Weight Averaging for Model Merging, arXiv 2412.12153. For every matrix, with the mean
    ``m = sum_t w_t expert_t / sum_t w_t``: ``merged = m + scale * sum_t w_t SVD_k(expert_t - m)``, k the
    ``rank_fraction`` of the shorter side (rounded down, at least 1). Other tensors take the mean. No base is needed.

    Here ``scale`` multiplies the low-rank parts alone: 0 gives the mean, and so does a rank fraction of 1.
    """

    name: ClassVar[str] = "cart"
    source: ClassVar[str] = "Choi et al., 2024, arXiv 2412.12153"
    zero_scale_is_base: ClassVar[bool] = False

    rank_fraction: float = parameter(
        0.08, "Share of singular triplets kept of each difference.", low=0, high=1, low_open=True
    )

    def requires_base(self, experts: int) -> bool:
        return False

    @property
    def rotation_equivariant(self) -> bool:
        return True

    def factors(self, deltas: TaskVectors) -> _Factors:
        shares = normalised(deltas.weights)
        mean = deltas.zeros()
        for index, share in enumerate(shares.tolist()):
            mean += deltas.unweighted(index).mul_(share)
        rank = max(1, int(self.rank_fraction * min(deltas.shape) + 1e-9))
        beyond = torch.zeros_like(mean)
        for index, weight in enumerate(deltas.weights.tolist()):
            beyond += leading_part(deltas.unweighted(index).sub_(mean), rank).mul_(weight)
        return _Factors(mean, beyond)

    def assemble(self, factors: _Factors) -> Float[Tensor, "rows columns"]:
        return factors.mean + self.resolved_scale(1) * factors.beyond

    def applied_scale(self, experts: int) -> float:
        return 1.0

    def rest(self, block: Block, weights: Float[Tensor, " experts"]) -> Float[Tensor, "*shape"]:
        return torch.einsum("t...,t->...", block.deltas, normalised(weights).to(block.base))
