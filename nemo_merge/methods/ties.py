"""TIES: trim, elect a sign, average those who agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from ._blocks import Block, Blocks, per_expert
from ._method import Method
from ._parameters import parameter
from ._registry import register
from ._selection import Selection, largest, share_of


@register
@dataclass(frozen=True)
class Ties(Method):
    """Trims each task vector to its largest entries, elects a sign per entry and averages the experts that have it.

    Yadav et al., 2023, arXiv 2306.01708, section 4. With ``d_t = w_t (expert_t - base)``:

    1. keep the ``density`` share of entries of largest ``|d_t|``, exactly that many (lowest index first among equals);
    2. ``sign = sign(sum_t d_t)`` over the kept entries;
    3. ``delta`` = mean over the experts whose kept entry has that sign; 0 where the sum is 0.

    Differences: the paper trims over the whole model (``scope=model``) and gives entries whose sum is exactly 0 the
    majority sign of the model; fusion_bench adds the agreeing entries instead of averaging them; mergekit divides by
    the sum of the agreeing experts' weights, here by their number; PEFT elects signs before weighting.
    """

    name: ClassVar[str] = "ties"
    family: ClassVar[str] = "task vectors"
    source: ClassVar[str] = "Yadav et al., 2023, arXiv 2306.01708"

    density: float = parameter(0.2, "Share of entries of each task vector that is kept.", low=0, high=1, low_open=True)
    scope: Literal["tensor", "model"] = parameter("tensor", "What the share is counted over.")

    @property
    def whole_model(self) -> bool:
        return self.scope == "model"

    def statistics(self, blocks: Blocks, weights: Float[Tensor, " experts"]) -> Selection | None:
        # Weights are per expert, so they do not change which of an expert's entries are the largest.
        if self.density == 1:
            return None
        return largest(blocks, lambda block: block.magnitudes, share_of(blocks, self.density, len(weights)))

    def combine_block(
        self, block: Block, weights: Float[Tensor, " experts"], statistics: Selection | None
    ) -> Float[Tensor, "*shape"]:
        deltas = block.deltas
        if statistics is not None:
            deltas *= statistics.mask(block, deltas.abs())
        return mean_of_the_agreeing(deltas.mul_(per_expert(weights, deltas)))


def mean_of_the_agreeing(deltas: Float[Tensor, "experts *shape"]) -> Float[Tensor, "*shape"]:
    """Mean over the entries that are not zero and have the sign of their sum; 0 where the sum is 0."""
    sign = deltas.sum(0).sign_()
    along = (deltas * sign).clamp_min_(0)  # exact: the sign is 1, -1 or 0
    total = along.sum(0)
    return total.mul_(sign).div_(along.sign_().sum(0).clamp_min_(1))
