"""KnOTS: merges in the joint singular basis of all task vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..linalg import left_basis
from ._blocks import Block, TaskVectors
from ._method import SpectralMethod, sum_of_task_vectors
from ._parameters import parameter
from ._registry import register
from ._selection import largest_in
from ._sparse import Combine
from .ties import mean_of_the_agreeing


@register
@dataclass(frozen=True)
class Knots(SpectralMethod):
    """Aligns the task vectors by one SVD of all of them side by side, and merges their coordinates.

    Stoica et al., 2024, Model merging with SVD to tie the Knots, arXiv 2410.19735, section 4. For every matrix, with
    ``d_t = w_t (expert_t - base)`` and ``[d_1 .. d_T] = U S [V_1' .. V_T']``: the coordinates ``S V_t'`` are merged by
    TIES (``density`` share of largest magnitude kept, sign election, mean) or added (``combine=linear``, which is task
    arithmetic), and mapped back by U. The default scale is 1 for ties and 1/T for linear.

    Differences: the authors trim over all layers at once, here each tensor for itself; their cut-off of 1e-5 for
    singular values is absolute, here it is relative (``linalg.RANK_TOLERANCE``).
    """

    name: ClassVar[str] = "knots"
    source: ClassVar[str] = "Stoica et al., 2024, arXiv 2410.19735"

    combine: Combine = parameter("ties", "How coordinates are merged: by TIES, or added.")
    density: float = parameter(0.2, "Share of coordinates of each expert kept by ties.", low=0, high=1, low_open=True)

    def default_scale(self, experts: int) -> float:
        return 1.0 / experts if self.combine == "linear" else 1.0

    def rest(self, block: Block, weights: Float[Tensor, " experts"]) -> Float[Tensor, "*shape"]:
        return sum_of_task_vectors(block, weights) if self.combine == "linear" else super().rest(block, weights)

    @property
    def rotation_equivariant(self) -> bool:
        return self.combine == "linear"  # TIES looks at single coordinates

    def factors(self, deltas: TaskVectors) -> Float[Tensor, "rows columns"]:
        if self.combine == "linear":
            return deltas.sum()
        basis = left_basis(deltas, deltas.noise())
        coordinates = torch.stack([basis.mT @ delta for delta in deltas])
        for part in coordinates:
            part *= largest_in(part.abs(), int(self.density * part.numel() + 1e-9))
        return basis @ mean_of_the_agreeing(coordinates)
