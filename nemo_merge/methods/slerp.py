"""SLERP: along the arc between two experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError
from ._parameters import parameter
from ._registry import register
from ._span import Gram, Space, SpanMethod, as_change, sine_ratio
from .soup import normalised


@register
@dataclass(frozen=True)
class Slerp(SpanMethod):
    """Spherical interpolation between the weights of two experts.

    Shoemake, 1985; for models Goddard et al., mergekit, arXiv 2403.13257. For every tensor (or every row of it, see
    ``granularity``) with the angle ``W`` between a and b: ``merged = sin((1-t) W)/sin W * a + sin(t W)/sin W * b``;
    without ``t`` it is the second expert's share of the weights. For experts at angle 0 this is ``(1-t) a + t b``,
    as it is, for want of a direction, within 1e-3 rad of opposite ones.

    Fine-tunes of one base are so close that SLERP is linear interpolation to many digits; ``nuslerp`` interpolates
    task vectors instead. Differences: mergekit interpolates linearly when the cosine is over 0.9995, here the formula
    holds down to an angle of 1e-7.
    """

    name: ClassVar[str] = "slerp"
    source: ClassVar[str] = "Shoemake, 1985; Goddard et al., 2024, arXiv 2403.13257"
    minimum_experts: ClassVar[int] = 2
    maximum_experts: ClassVar[int | None] = 2
    space: ClassVar[Space] = "weights"

    t: float | None = parameter(
        None,
        "Where on the way from the first expert (0) to the second (1); by default from the weights.",
        low=0,
        high=1,
    )
    granularity: Literal["tensor", "row"] = parameter("tensor", "What has one angle.")

    def requires_base(self, experts: int) -> bool:
        return self.space == "task_vectors" or self.resolved_scale(experts) != 1.0

    @property
    def by_row(self) -> bool:
        return self.granularity == "row"

    def coefficients(self, gram: Gram, weights: Float[Tensor, " experts"]) -> Float[Tensor, "*rows vectors"]:
        t = float(normalised(weights)[1]) if self.t is None else self.t
        if not 0 <= t <= 1:
            raise ConfigError(
                f"{self.name}: weights {weights.tolist()} give t={t:g}; give both the same sign, or pass t"
            )
        a, b = gram.vectors(self.space)
        norm_a, norm_b = gram.norm(a), gram.norm(b)
        there = (norm_a > 0) & (norm_b > 0)
        unit_a = a / torch.where(there, norm_a, 1)[..., None]
        unit_b = b / torch.where(there, norm_b, 1)[..., None]
        angle = 2 * torch.atan2(gram.norm(unit_a - unit_b), gram.norm(unit_a + unit_b))
        angle = torch.where(there, angle, 0)
        merged = sine_ratio(1 - t, angle)[..., None] * a + sine_ratio(t, angle)[..., None] * b
        return as_change(merged, self.space)
