"""Subspace Boosting: raise the weak singular values of a merged task vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ..linalg import thin_svd
from ..tensors import MATRIX_LIKE, Role
from ._parameters import parameter
from ._post import Place, PostProcessor
from ._registry import register
from .boosted_tsvm import boosted


@register
@dataclass(frozen=True)
class SubspaceBoost(PostProcessor):
    """Raises the singular values of a merged matrix to the one at which their cumulative sum reaches a share.

    Skorobogat et al., 2025, Subspace-Boosted Model Merging, arXiv 2506.16506. With ``delta = U diag(s) V'`` and ``j*``
    the first j with ``sum_{i<=j} s_i >= beta sum_i s_i``: ``s_i = max(s_i, s_{j*})``; values that are zero stay zero.
    Other tensors are left alone. ``boosted_tsvm`` does the same to every expert before merging, with a larger beta.
    """

    name: ClassVar[str] = "subspace_boost"
    source: ClassVar[str] = "Skorobogat et al., 2025, arXiv 2506.16506"

    beta: float = parameter(0.01, "Share of the sum of singular values at which they are levelled.", low=0, high=1)

    def needs_matrix(self, role: Role) -> bool:
        return role in MATRIX_LIKE

    def apply(self, delta: Float[Tensor, "*shape"], place: Place) -> Float[Tensor, "*shape"]:
        if not self.needs_matrix(place.role):
            return delta
        u, s, vt = thin_svd(delta.reshape(delta.shape[0], -1), floor=place.noise)
        return ((u * boosted(s, self.beta, 1, len(s))) @ vt).view_as(delta).to(delta)
