"""Iso-CTS: a common subspace, a small one for each expert, and equal singular values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..linalg import Orthogonalizer, orthogonalise, thin_svd
from ._blocks import TaskVectors
from ._method import SpectralMethod
from ._parameters import parameter
from ._registry import register


@register
@dataclass(frozen=True)
class IsoCts(SpectralMethod):
    """Keeps the leading directions of the sum, gives the rest to what each expert has of its own, and levels all.

    Marczak et al., 2025, No Task Left Behind, arXiv 2502.04959, section 4.2. For every matrix with shorter side r, T
    experts and ``d_t = w_t (expert_t - base)``:

    1. ``q = round((r - floor(common_fraction r)) / T)`` directions per expert, at most ``floor(r / T)``; the other
       ``r - q T`` are common ones;
    2. common part: leading singular triplets ``U_c, s_c, V_c`` of ``sum_t d_t``;
    3. own part: leading q triplets of ``d_t - U_c U_c' d_t``;
    4. ``delta = mean(s) orth([own U, U_c]) orth([own V, V_c])'`` with the mean of all their singular
       values that are not zero.

    A fraction of 1 is Iso-C. Carvalho et al., 2026, arXiv 2603.05354, use Newton-Schulz for ``orth``; the default is
    the exact polar factor as a partial isometry, which leaves directions that are missing at zero.
    """

    name: ClassVar[str] = "iso_cts"
    source: ClassVar[str] = "Marczak et al., 2025, arXiv 2502.04959"

    common_fraction: float = parameter(0.8, "Share of directions that come from the sum.", low=0, high=1)
    orthogonalizer: Orthogonalizer = parameter("gram_polar", "How the concatenated bases are made orthogonal.")
    schedule: Literal["quintic", "polar_express", "simple", "polish"] = parameter(
        "quintic", "Coefficients of the Newton-Schulz steps."
    )
    steps: int = parameter(5, "Number of Newton-Schulz steps.", low=1, high=50)

    @property
    def rotation_equivariant(self) -> bool:
        return True

    def factors(self, deltas: TaskVectors) -> Float[Tensor, "rows columns"]:
        short, experts = min(deltas.shape), len(deltas)
        # Halves are rounded to even, as in the authors' code.
        own = min(round((short - int(self.common_fraction * short + 1e-9)) / experts), short // experts)
        shared = thin_svd(deltas.sum(), short - own * experts, deltas.noise())
        parts = []
        if own:
            for index, delta in enumerate(deltas):
                # What is left of a task vector within the common subspace is rounding: small beside the task vector.
                largest = float(delta.norm()) / short**0.5
                left = delta.sub_(shared.u @ (shared.u.mT @ delta))
                parts.append(thin_svd(left, own, deltas.noise(index), largest))
        s = torch.cat([*(part.s[:own] for part in parts), shared.s[: short - own * experts]])
        u = torch.cat([*(part.u for part in parts), shared.u], dim=1)
        vt = torch.cat([*(part.vt for part in parts), shared.vt])
        u = orthogonalise(u, self.orthogonalizer, self.schedule, self.steps)
        vt = orthogonalise(vt, self.orthogonalizer, self.schedule, self.steps)
        return (u @ vt).mul_(s.sum() / (s > 0).sum().clamp_min(1))
