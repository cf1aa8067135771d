"""STAR: truncated task vectors, rescaled to their nuclear norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ..linalg import thin_svd
from ._blocks import TaskVectors
from ._method import SpectralMethod
from ._parameters import parameter
from ._registry import register


@register
@dataclass(frozen=True)
class Star(SpectralMethod):
    """Keeps of every expert the triplets that hold a share of its nuclear norm, rescales them to all of it, averages.

    Lee et al., 2025, STAR: Spectral Truncation and Rescale for Model Merging, arXiv 2502.10339. For every matrix, with
    ``w_t (expert_t - base) = U_t diag(s_t) V_t'``: the smallest k with ``sum_{i<=k} s_i >= energy * sum_i s_i``; kept
    values are multiplied by ``sum_i s_i / sum_{i<=k} s_i``; ``delta`` is the mean over experts; ``energy`` of 1 gives
    that of the task vectors.
    """

    name: ClassVar[str] = "star"
    source: ClassVar[str] = "Lee et al., 2025, arXiv 2502.10339"

    energy: float = parameter(0.4, "Share of the nuclear norm that is kept.", low=0, high=1, low_open=True)

    def additive_factor(self, weights: Float[Tensor, " experts"]) -> float:
        return self.resolved_scale(len(weights)) / len(weights)

    @property
    def rotation_equivariant(self) -> bool:
        return True

    def factors(self, deltas: TaskVectors) -> Float[Tensor, "rows columns"]:
        mean = deltas.zeros()
        for index, delta in enumerate(deltas):
            u, s, vt = thin_svd(delta, floor=deltas.noise(index))
            cumulated = s.cumsum(0)
            if cumulated[-1] == 0:
                continue
            rank = min(int((cumulated < self.energy * cumulated[-1] * (1 - 1e-12)).sum()) + 1, len(s))
            mean += (u[:, :rank] * (s[:rank] * (cumulated[-1] / cumulated[rank - 1] / len(deltas)))) @ vt[:rank]
        return mean
