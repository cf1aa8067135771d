"""TSV-M: the strongest singular directions of every expert, decorrelated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

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
class Tsvm(SpectralMethod):
    """Concatenates the leading singular triplets of all task vectors and makes their bases orthogonal.

    Gargiulo et al., 2025, Task Singular Vectors, arXiv 2412.00081, section 4. For every matrix, with
    ``w_t (expert_t - base) = U_t diag(s_t) V_t'``:

    1. keep the first ``k = max(1, floor(rank_fraction * r))`` triplets, r the shorter side; 1/T by default;
    2. ``U = orth([U_1 .. U_T])``, ``V' = orth([V_1'; ..; V_T'])``, singular values side by side;
    3. ``delta = U diag(s) V'``.

    Other tensors take the mean task vector. On square matrices a rank fraction of 1 gives exactly the mean, so
    ``scale`` has to be tuned together with it.

    Differences: the reference makes the bases orthogonal by a second SVD, which brings arbitrary directions in at full
    strength when experts are alike (four equal experts end 173 % away from their common truncation); all three
    orthogonalizers here return that truncation. Newton-Schulz in place of Procrustes follows Carvalho et al., 2026,
    arXiv 2603.05354. Pointwise convolutions are treated as the matrices that they are.
    """

    name: ClassVar[str] = "tsvm"
    source: ClassVar[str] = "Gargiulo et al., 2025, arXiv 2412.00081; Carvalho et al., 2026, arXiv 2603.05354"

    rank_fraction: float | None = parameter(
        None,
        "Share of singular triplets kept of each expert; by default one over their number.",
        low=0,
        high=1,
        low_open=True,
    )
    orthogonalizer: Orthogonalizer = parameter("newton_schulz", "How the concatenated bases are made orthogonal.")
    schedule: Literal["quintic", "polar_express", "simple", "polish"] = parameter(
        "quintic", "Coefficients of the Newton-Schulz steps."
    )
    steps: int = parameter(5, "Number of Newton-Schulz steps.", low=1, high=50)

    @property
    def rotation_equivariant(self) -> bool:
        return True

    def factors(self, deltas: TaskVectors) -> TsvmFactors:
        fraction = 1.0 / len(deltas) if self.rank_fraction is None else self.rank_fraction
        rank = max(1, int(fraction * min(deltas.shape) + 1e-9))
        parts = [thin_svd(delta, rank, deltas.noise(index)) for index, delta in enumerate(deltas)]
        u = torch.cat([part.u for part in parts], dim=1)
        vt = torch.cat([part.vt for part in parts], dim=0)
        spectra = [part.s for part in parts]
        del parts
        return TsvmFactors(
            orthogonalise(u, self.orthogonalizer, self.schedule, self.steps),
            spectra,
            orthogonalise(vt, self.orthogonalizer, self.schedule, self.steps),
            rank,
        )

    def assemble(self, factors: TsvmFactors) -> Float[Tensor, "rows columns"]:
        s = torch.cat([self.boost(spectrum, factors.rank)[: factors.rank] for spectrum in factors.spectra])
        return (factors.u * s) @ factors.vt

    def boost(self, s: Float[Tensor, " short"], rank: int) -> Float[Tensor, " short"]:
        """Changes all singular values of one expert, of which the leading ``rank`` are then taken."""
        return s


class TsvmFactors(NamedTuple):
    """Orthogonalised bases of all experts side by side, and every expert's singular values."""

    u: Float[Tensor, "rows kept"]
    spectra: list[Float[Tensor, " short"]]
    vt: Float[Tensor, "kept columns"]
    rank: int
