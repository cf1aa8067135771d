"""Karcher mean: the mean direction on the sphere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ._parameters import parameter
from ._registry import register
from ._span import DirectionMethod, Gram, as_change, directions, unit_mean
from .soup import normalised


@register
@dataclass(frozen=True)
class Karcher(DirectionMethod):
    """The point on the sphere with the least sum of squared angles to the experts, times their mean norm.

    Karcher, 1977; compared for speech by Carvalho et al., 2026, arXiv 2603.05354. For every tensor, with directions
    ``u_t = x_t/|x_t|`` and weights ``a_t`` that sum to 1, start at the direction of ``sum_t a_t u_t`` and repeat

    ``v = sum_t a_t (phi_t / sin phi_t) (u_t - cos phi_t u)``, ``u = cos|v| u + sin|v| v/|v|``

    until ``|v| < tolerance``; the result is ``(sum_t a_t |x_t|) u``. ``space=weights`` takes the experts' weights for
    x, ``task_vectors`` their differences to the base, which then must be given.

    All vectors stay in the span of the inputs, so the iteration runs on T + 1 coefficients with inner products in
    float64, and angles come from atan2. Differences: mergekit iterates on float32 weights with arccos, which for
    fine-tunes of one base is mostly rounding noise (errors of up to half the change), and has no weights. Tensors
    that are zero do not count towards the direction.
    """

    name: ClassVar[str] = "karcher"
    source: ClassVar[str] = "Karcher, 1977; Carvalho et al., 2026, arXiv 2603.05354"

    tolerance: float = parameter(1e-12, "Length of the last step, in radians.", low=0, low_open=True)
    max_iterations: int = parameter(50, "Largest number of steps.", low=1)

    def coefficients(self, gram: Gram, weights: Float[Tensor, " experts"]) -> Float[Tensor, " vectors"]:
        units, norms, shares = directions(gram, normalised(weights), self.space)
        mean_norm = (shares * norms).sum()
        if mean_norm == 0:
            return torch.zeros(gram.experts + 1, dtype=torch.float64)
        u = unit_mean(gram, units, shares, self.name)
        shares = normalised(shares)  # without the experts that are zero
        for _ in range(self.max_iterations):
            cosines = torch.stack([gram.inner(u, unit) for unit in units])
            away = units - cosines[:, None] * u
            sines = torch.stack([gram.norm(row) for row in away])
            angles = torch.atan2(sines, cosines)
            stretch = torch.where(sines > 0, angles / torch.where(sines > 0, sines, 1), 1.0)
            step = ((shares * stretch)[:, None] * away).sum(0)
            length = gram.norm(step)
            u = length.cos() * u + torch.sinc(length / torch.pi) * step
            u = u / gram.norm(u)
            if length < self.tolerance:
                break
        return as_change(mean_norm * u, self.space)
