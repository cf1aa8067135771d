"""Model Stock: as far from the base to the mean of the experts as their angle says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ._parameters import parameter
from ._registry import register
from ._span import Gram, SpanMethod
from .soup import normalised


@register
@dataclass(frozen=True)
class ModelStock(SpanMethod):
    """Interpolates between base and mean: the more the experts agree, the nearer to their mean.

    Jang et al., 2024, Model Stock, arXiv 2403.19522, section 4. For every tensor, with task vectors ``d_t`` and ``c``
    the mean cosine over pairs of them: ``t = T c / (1 + (T - 1) c)``, ``merged = base + scale * t * mean_t d_t``.
    ``weights`` weigh the mean. Equal experts give t = 1, orthogonal ones t = 0. ``granularity=row`` does this for what
    belongs to each output unit.

    Cosines are those of the sum of unit vectors: ``1 + (T - 1) c = |sum_t d_t/|d_t||^2 / T``, which takes one pass and
    is never negative. Differences: the paper has one angle; mergekit averages cosines as here, fusion_bench angles;
    mergekit clamps norm products at 1e-6 and returns noise for small vectors. ``clamp`` keeps t in [0, 1]: experts at
    obtuse angles would otherwise be extrapolated away from. Experts equal
    to the base in a tensor do not count towards its angle.
    """

    name: ClassVar[str] = "model_stock"
    source: ClassVar[str] = "Jang et al., 2024, arXiv 2403.19522"
    minimum_experts: ClassVar[int] = 2

    granularity: Literal["tensor", "row"] = parameter("tensor", "What has one angle.")
    clamp: bool = parameter(True, "Keep the interpolation between base and mean.")

    @property
    def by_row(self) -> bool:
        return self.granularity == "row"

    def coefficients(self, gram: Gram, weights: Float[Tensor, " experts"]) -> Float[Tensor, "*rows vectors"]:
        products = gram.products[..., 1:, 1:]
        norms = products.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
        moved = norms > 0
        inverse = torch.where(moved, 1 / torch.where(moved, norms, 1), 0)
        count = moved.sum(-1).double()
        square = torch.einsum("...i,...ij,...j->...", inverse, products, inverse).clamp_min(0)
        # t = T c / (1 + (T - 1) c) with c from the square of the sum of unit vectors; 1 where there is no pair.
        pairs = (count > 1) & (square > 1e-14 * count)
        t = (square - count) / torch.where(pairs, square * (count - 1), 1) * count
        t = torch.where(count > 1, torch.where(pairs, t, 0), 1.0)
        if self.clamp:
            t = t.clamp(0, 1)
        shares = normalised(weights) * t[..., None]
        return torch.cat([torch.zeros_like(shares[..., :1]), shares], dim=-1)
