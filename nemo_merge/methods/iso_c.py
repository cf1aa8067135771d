"""Iso-C: the sum of the task vectors with all singular values made equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ..linalg import thin_svd
from ._blocks import TaskVectors
from ._method import SpectralMethod
from ._registry import register


@register
@dataclass(frozen=True)
class IsoC(SpectralMethod):
    """Replaces the singular values of the summed task vectors by their mean.

    Marczak et al., 2025, No Task Left Behind, arXiv 2502.04959, section 4.1. For every matrix, with
    ``sum_t w_t (expert_t - base) = U diag(s) V'``: ``delta = mean(s) U V'``. Other tensors take the mean task vector.

    Differences: on a sum of low rank (LoRA experts, duplicates) the authors' code fills the missing directions with
    arbitrary vectors at full strength; here they stay zero, and the mean is over the singular values that are there
    (above ``linalg.RANK_TOLERANCE``). Pointwise convolutions are treated as matrices.
    """

    name: ClassVar[str] = "iso_c"
    source: ClassVar[str] = "Marczak et al., 2025, arXiv 2502.04959"

    @property
    def rotation_equivariant(self) -> bool:
        return True

    def factors(self, deltas: TaskVectors) -> Float[Tensor, "rows columns"]:
        u, s, vt = thin_svd(deltas.sum(), floor=deltas.noise())
        rank = int((s > 0).sum())
        return (u @ vt).mul_(s.sum() / max(rank, 1))
