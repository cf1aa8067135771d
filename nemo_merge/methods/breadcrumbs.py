"""Model Breadcrumbs: drop the largest and the smallest entries of task vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError
from ._blocks import Block, Blocks, per_expert
from ._method import Method
from ._parameters import parameter
from ._registry import register
from ._selection import Selection, descending, selections, share_of


@register
@dataclass(frozen=True)
class Breadcrumbs(Method):
    """Drops the ``outliers`` share of largest magnitude, keeps the ``density`` share below it, and adds what is left.

    Davari and Belilovsky, 2024, Model Breadcrumbs, arXiv 2312.06795, section 3. Of n entries of ``expert_t - base``, by
    descending magnitude: drop ``floor(outliers n)``, keep the next ``floor(density n)`` (lowest index first among
    equals), drop the rest; ``delta = sum_t w_t kept_t``, the default scale 1/T. ``outliers`` of 0 is magnitude pruning.

    ``granularity=tensor`` counts over the tensor, as mergekit does; ``row`` over what belongs to one output unit, as
    the authors do. Differences: mergekit up to 0.1.4 returns an empty tensor when ``floor(outliers n)`` is 0.
    """

    name: ClassVar[str] = "breadcrumbs"
    family: ClassVar[str] = "task vectors"
    source: ClassVar[str] = "Davari and Belilovsky, 2024, arXiv 2312.06795"

    density: float = parameter(0.9, "Share of entries that is kept.", low=0, high=1, low_open=True)
    outliers: float = parameter(0.01, "Share of the largest entries that is dropped.", low=0, high=1)
    granularity: Literal["tensor", "row"] = parameter("tensor", "What the shares are counted over.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.density + self.outliers > 1 + 1e-9:
            raise ConfigError(
                f"breadcrumbs: density={self.density} and outliers={self.outliers} are more than everything; "
                "their sum may be at most 1"
            )

    @property
    def by_row(self) -> bool:
        return self.granularity == "row"

    def default_scale(self, experts: int) -> float:
        return 1.0 / experts

    def additive_factor(self, weights: Float[Tensor, " experts"]) -> float:
        return self.resolved_scale(len(weights))

    def statistics(self, blocks: Blocks, weights: Float[Tensor, " experts"]) -> tuple[Selection, Selection] | None:
        if self.granularity == "row":
            return None
        dropped = share_of(blocks, self.outliers, len(weights))
        kept = share_of(blocks, self.density, len(weights))
        outliers, both = selections(blocks, lambda block: block.magnitudes, [dropped, dropped + kept])
        return outliers, both

    def combine_block(
        self, block: Block, weights: Float[Tensor, " experts"], statistics: tuple[Selection, Selection] | None
    ) -> Float[Tensor, "*shape"]:
        deltas = block.deltas
        magnitudes = deltas.abs()
        if statistics is None:
            kept = self._in_rows(magnitudes)
        else:
            outliers, both = statistics
            kept = both.mask(block, magnitudes).sub_(outliers.mask(block, magnitudes))
        return deltas.mul_(kept).mul_(per_expert(weights, deltas)).sum(0)

    def _in_rows(self, magnitudes: Float[Tensor, "experts *shape"]) -> Float[Tensor, "experts *shape"]:
        rows = magnitudes.flatten(2) if magnitudes.dim() > 2 else magnitudes
        count = rows.shape[-1]
        first = int(self.outliers * count + 1e-9)
        end = first + int(self.density * count + 1e-9)
        order = descending(rows)
        kept = torch.zeros_like(rows)
        return kept.scatter_(-1, order[..., first:end], 1.0).view_as(magnitudes)
