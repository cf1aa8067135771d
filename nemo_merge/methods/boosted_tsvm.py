"""BoostedTSV-M: TSV-M with the weak singular values of every expert raised first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ._parameters import parameter
from ._registry import register
from .tsvm import Tsvm


@register
@dataclass(frozen=True)
class BoostedTsvm(Tsvm):
    """TSV-M in which no singular value stays below the one where the cumulative energy reaches ``beta``.

    Carvalho et al., 2026, arXiv 2603.05354, which joins TSV-M to Subspace Boosting (Skorobogat et al., 2025,
    arXiv 2506.16506). For every expert, before truncation: ``c_j = sum_{i<=j} s_i^p / sum_i s_i^p``, ``j*`` the first j
    with ``c_j >= beta``, then ``s_i = max(s_i, s_{j*})``. ``beta`` of 1 is TSV-M; a smaller one flattens the spectrum,
    which helps the experts' own domains and costs elsewhere.

    The published summaries leave open whether energy is s or s^2 and whether it is counted before or after truncation:
    ``energy_power`` and ``energy_scope`` choose. Singular values that are zero (see ``linalg.RANK_TOLERANCE``) stay
    zero, so that a low-rank task vector does not gain directions it never had.
    """

    name: ClassVar[str] = "boosted_tsvm"
    source: ClassVar[str] = "Carvalho et al., 2026, arXiv 2603.05354"
    late: ClassVar[tuple[str, ...]] = ("scale", "beta", "energy_power", "energy_scope")

    beta: float = parameter(
        0.3,
        "Share of the cumulative energy at which the singular values are levelled; 1 levels nothing.",
        low=0,
        high=1,
    )
    energy_power: Literal[1, 2] = parameter(1, "Energy of a singular value: itself or its square.")
    energy_scope: Literal["full", "kept"] = parameter(
        "full", "Spectrum that the energy is counted over: all or the kept part."
    )

    def boost(self, s: Float[Tensor, " short"], rank: int) -> Float[Tensor, " short"]:
        return boosted(s, self.beta, self.energy_power, len(s) if self.energy_scope == "full" else rank)


def boosted(s: Float[Tensor, " short"], beta: float, power: int, scope: int) -> Float[Tensor, " short"]:
    """Singular values raised to the one at which the first ``scope`` of them reach the share ``beta`` of the energy."""
    energy = s[:scope].double() ** power
    total = energy.sum()
    if total == 0 or beta >= 1:
        return s
    reached = (energy.cumsum(0) / total >= beta - 1e-12).nonzero()
    level = s[int(reached[0])] if len(reached) else s[scope - 1]
    return torch.where(s > 0, s.clamp_min(float(level)), s)
