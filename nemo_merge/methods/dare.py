"""DARE: drop entries of task vectors at random and rescale the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from ._blocks import Block
from ._parameters import parameter
from ._random import bernoulli
from ._registry import register
from ._sparse import SparseMethod


@register
@dataclass(frozen=True)
class Dare(SparseMethod):
    """Keeps every entry of a task vector with probability ``density`` and divides it by that.

    Yu et al., 2024, Language models are super Mario, arXiv 2311.03099, section 3. With ``d_t = w_t (expert_t - base)``
    and independent ``m ~ Bernoulli(density)``: ``d'_t = m d_t / density``, whose expectation is ``d_t``. Then
    ``combine=linear``: ``delta = sum_t d'_t`` (default scale 1/T), or ``combine=ties``: sign election and mean as in
    TIES, without its trimming (default scale 1).

    Random numbers depend on ``seed``, the expert's place in the list and the tensor's name alone. Differences: mergekit
    rescales so that the L1 norm of each tensor stays, which is biased entry by entry, and draws from one global
    generator; its default density of 1 drops nothing.
    """

    name: ClassVar[str] = "dare"
    source: ClassVar[str] = "Yu et al., 2024, arXiv 2311.03099"

    density: float = parameter(0.5, "Probability with which an entry is kept.", low=0, high=1, low_open=True)
    seed: int = parameter(0, "Seed of the random numbers.")

    def combine_block(
        self, block: Block, weights: Float[Tensor, " experts"], statistics: Any
    ) -> Float[Tensor, "*shape"]:
        deltas = block.weighted(weights / self.density)
        for expert, delta in enumerate(deltas):
            delta *= bernoulli(block, self.seed, expert, self.density)
        return self.combined(deltas)
