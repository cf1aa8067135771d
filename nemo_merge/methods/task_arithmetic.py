"""Task arithmetic: the weighted sum of task vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from ._blocks import Block
from ._method import Method
from ._registry import register


@register
@dataclass(frozen=True)
class TaskArithmetic(Method):
    """Adds the weighted sum of the task vectors to the base (Ilharco et al., 2023, arXiv 2212.04089, section 2).

    ``merged = base + scale * sum_t w_t (expert_t - base)``. The default scale is 1/T, the mean of the experts; values
    up to 0.3 or 0.5 are worth a search. A negative weight removes what an expert has learnt.
    """

    name: ClassVar[str] = "task_arithmetic"
    family: ClassVar[str] = "task vectors"
    source: ClassVar[str] = "Ilharco et al., 2023, arXiv 2212.04089"

    def default_scale(self, experts: int) -> float:
        return 1.0 / experts

    def additive_factor(self, weights: Float[Tensor, " experts"]) -> float:
        return self.resolved_scale(len(weights))

    @property
    def rotation_equivariant(self) -> bool:
        return True

    def combine_block(
        self, block: Block, weights: Float[Tensor, " experts"], statistics: Any
    ) -> Float[Tensor, "*shape"]:
        return block.weighted_sum(weights)
