"""Task arithmetic: the weighted sum of task vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ._method import TaskVectorMethod
from ._registry import register


@register
@dataclass(frozen=True)
class TaskArithmetic(TaskVectorMethod):
    """Adds the weighted sum of the task vectors to the base (Ilharco et al., 2023, arXiv 2212.04089, section 2).

    ``merged = base + scale * sum_t w_t (expert_t - base)``. The default scale is 1/T, the mean of the experts; values
    up to 0.3 or 0.5 are worth a search. A negative weight removes what an expert has learnt.
    """

    name: ClassVar[str] = "task_arithmetic"
    source: ClassVar[str] = "Ilharco et al., 2023, arXiv 2212.04089"

    def default_scale(self, experts: int) -> float:
        return 1.0 / experts

    @property
    def rotation_equivariant(self) -> bool:
        return True

    def combine(
        self, deltas: Float[Tensor, "experts *shape"], weights: Float[Tensor, " experts"]
    ) -> Float[Tensor, "*shape"]:
        return torch.einsum("t...,t->...", deltas, weights.to(deltas))
