"""Model soup: the mean of the experts' weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError
from ._method import TaskVectorMethod
from ._registry import register


@register
@dataclass(frozen=True)
class Soup(TaskVectorMethod):
    """Weighted mean of the experts (Wortsman et al., 2022, Model soups, arXiv 2203.05482, section 3).

    ``merged = sum_t w_t expert_t / sum_t w_t``; with ``scale`` s it is ``base + s (mean - base)``. Equal weights give
    task arithmetic with a scale of 1/T. No base is needed for a scale of 1.

    Computed as base (or first expert) plus the mean of the differences to it, which are exact for fine-tunes of one
    base, so that the result is rounded once; a mean of float32 weights has twice that error.
    """

    name: ClassVar[str] = "soup"
    family: ClassVar[str] = "parameter space"
    source: ClassVar[str] = "Wortsman et al., 2022, arXiv 2203.05482"

    def requires_base(self, experts: int) -> bool:
        return self.resolved_scale(experts) != 1.0

    @property
    def rotation_equivariant(self) -> bool:
        return True

    def combine(
        self, deltas: Float[Tensor, "experts *shape"], weights: Float[Tensor, " experts"]
    ) -> Float[Tensor, "*shape"]:
        return torch.einsum("t...,t->...", deltas, normalised(weights).to(deltas))


def normalised(weights: Float[Tensor, " experts"]) -> Float[Tensor, " experts"]:
    """Weights divided by their sum.

    Raises:
        ConfigError: the weights cancel each other.
    """
    total = weights.sum()
    if total.abs() < 1e-8 * weights.abs().sum() or not weights.any():
        raise ConfigError(f"weights {weights.tolist()} sum to zero, so they cannot be normalised")
    return weights / total
