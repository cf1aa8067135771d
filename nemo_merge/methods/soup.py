"""Model soup: the mean of the experts' weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError
from ._blocks import Block
from ._method import Method
from ._registry import register


@register
@dataclass(frozen=True)
class Soup(Method):
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

    def additive_factor(self, weights: Float[Tensor, " experts"]) -> float:
        return self.resolved_scale(len(weights)) / float(weights.sum())

    @property
    def rotation_equivariant(self) -> bool:
        return True

    def combine_block(
        self, block: Block, weights: Float[Tensor, " experts"], statistics: Any
    ) -> Float[Tensor, "*shape"]:
        return block.weighted_sum(normalised(weights))


def normalised(weights: Float[Tensor, " experts"]) -> Float[Tensor, " experts"]:
    """Weights divided by their sum.

    Raises:
        ConfigError: the weights cancel each other.
    """
    total = weights.sum()
    if total.abs() < 1e-8 * weights.abs().sum() or not weights.any():
        raise ConfigError(f"weights {weights.tolist()} sum to zero, so they cannot be normalised")
    return weights / total
