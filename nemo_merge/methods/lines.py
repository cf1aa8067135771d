"""LiNeS: shallow blocks change less than deep ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from ._parameters import parameter
from ._post import Place, PostProcessor
from ._registry import register


@register
@dataclass(frozen=True)
class Lines(PostProcessor):
    """Multiplies the merged task vector of every block by a ramp that rises with depth.

    Wang et al., 2024, LiNeS, arXiv 2410.17146, section 4. Block l of L takes ``alpha + beta l / (L - 1)``; tensors that
    belong to no block take ``alpha``. By default ``alpha = |sum_t d_t|_1 / (T |change|_1)`` over the whole model, where
    the change is what the method would add to the base, so that a merge by the mean starts at 1. It takes computing
    the merge twice; give ``alpha`` to avoid that.

    ``stacks=separate`` starts anew in encoder and decoder; ``concatenated`` counts decoder blocks after those of the
    encoder. Differences: the authors' code looks for a number in the name, so that both start at 0.
    """

    name: ClassVar[str] = "lines"
    source: ClassVar[str] = "Wang et al., 2024, arXiv 2410.17146"

    alpha: float | None = parameter(None, "Factor of the first block; by default from the norms.", low=0)
    beta: float = parameter(0.5, "What the last block takes more than the first.")
    stacks: Literal["separate", "concatenated"] = parameter("separate", "Whether encoder and decoder are one stack.")

    @property
    def needs_ratio(self) -> bool:
        return self.alpha is None

    def apply(self, delta: Float[Tensor, "*shape"], place: Place) -> Float[Tensor, "*shape"]:
        alpha = place.ratio / place.experts if self.alpha is None else self.alpha
        return delta * (alpha + self.beta * self.position(place))

    def position(self, place: Place) -> float:
        """0 for the first block and for tensors in no block, 1 for the last."""
        if place.depth is None:
            return 0.0
        if self.stacks == "separate":
            return place.depth.position
        counts = {depth.stack: depth.blocks for depth in place.depths.values()}
        stacks = sorted(counts, key=lambda stack: ("decoder" in stack, stack))
        before = sum(counts[stack] for stack in stacks[: stacks.index(place.depth.stack)])
        return (before + place.depth.block) / max(sum(counts.values()) - 1, 1)
