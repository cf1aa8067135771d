"""Multi-SLERP: the mean direction times the mean norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ._registry import register
from ._span import DirectionMethod, Gram, as_change, directions, unit_mean
from .soup import normalised


@register
@dataclass(frozen=True)
class Multislerp(DirectionMethod):
    """The weighted mean of the norms times the direction of the weighted mean of the unit vectors.

    Goddard et al., mergekit, arXiv 2403.13257. For every tensor, with weights ``a_t`` that sum to 1:
    ``merged = (sum_t a_t |x_t|) M/|M|``, ``M = sum_t a_t x_t/|x_t|``. ``space=weights`` takes the experts' weights for
    x, ``task_vectors`` their differences to the base, to which the result is then added.

    mergekit projects the unit vectors to the tangent space at M/|M|, averages and maps back; the projections average to
    zero, so that this closed form is what it computes. For the mean on the sphere itself see ``karcher``; for
    fine-tunes of one base the two agree to the cube of the relative change.
    """

    name: ClassVar[str] = "multislerp"
    source: ClassVar[str] = "Goddard et al., 2024, arXiv 2403.13257"

    def coefficients(self, gram: Gram, weights: Float[Tensor, " experts"]) -> Float[Tensor, " vectors"]:
        units, norms, shares = directions(gram, normalised(weights), self.space)
        mean_norm = (shares * norms).sum()
        if mean_norm == 0:
            return torch.zeros(gram.experts + 1, dtype=torch.float64)
        return as_change(mean_norm * unit_mean(gram, units, shares, self.name), self.space)
