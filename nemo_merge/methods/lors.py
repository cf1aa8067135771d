"""LoRS-Merging: low rank plus sparse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError
from ..linalg import leading_part
from ._blocks import Block, TaskVectors
from ._method import SpectralMethod, sum_of_task_vectors
from ._parameters import parameter
from ._registry import register
from ._selection import largest_in


@register
@dataclass(frozen=True)
class Lors(SpectralMethod):
    """Adds, of every task vector, its best low-rank part and the largest entries of what that leaves over.

    Zhao, Sun and Zhang, 2025, Low-Rank and Sparse Model Merging for Multi-Lingual Speech Recognition and Translation,
    arXiv 2502.17380. For every matrix, with ``d_t = expert_t - base``:

    1. ``L_t`` = the leading ``rank`` singular triplets of ``d_t``;
    2. ``S_t`` = ``d_t - L_t`` with all but its ``floor(density n)`` entries of largest magnitude set to 0;
    3. ``delta = sum_t w_t (L_t + S_t)``; the default ``scale`` is 1/T.

    Other tensors take the sum of the task vectors as they are. The authors keep 7 of 768 triplets and 20 % of the
    entries, which are the defaults (1 % of the shorter side, rounded down, at least 1). Differences: the authors'
    script treats the attention and feed-forward weights only, here all matrices but embeddings and output layers.
    """

    name: ClassVar[str] = "lors"
    source: ClassVar[str] = "Zhao et al., 2025, arXiv 2502.17380"

    rank: int | None = parameter(None, "Number of singular triplets kept; by default by rank_fraction.", low=0)
    rank_fraction: float = parameter(0.01, "Share of singular triplets kept, at least one.", low=0, high=1)
    density: float = parameter(0.2, "Share of entries kept of the rest.", low=0, high=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank == 0 and self.density == 0:
            raise ConfigError("lors: rank=0 and density=0 keep nothing; use scale=0 for the base")

    def default_scale(self, experts: int) -> float:
        return 1.0 / experts

    def rest(self, block: Block, weights: Float[Tensor, " experts"]) -> Float[Tensor, "*shape"]:
        return sum_of_task_vectors(block, weights)

    def additive_factor(self, weights: Float[Tensor, " experts"]) -> float:
        return self.resolved_scale(len(weights))

    @property
    def rotation_equivariant(self) -> bool:
        return self.density == 0  # what is sparse is so in one basis only

    def factors(self, deltas: TaskVectors) -> Float[Tensor, "rows columns"]:
        short = min(deltas.shape)
        share = max(1, int(self.rank_fraction * short + 1e-9)) if self.rank_fraction else 0
        rank = min(short, share if self.rank is None else self.rank)
        total = None
        for index, weight in enumerate(deltas.weights.tolist()):
            delta = deltas.unweighted(index)
            low_rank = leading_part(delta, rank)
            sparse = delta.sub_(low_rank)
            sparse *= largest_in(sparse.abs(), int(self.density * sparse.numel() + 1e-9))
            part = low_rank.add_(sparse).mul_(weight)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total
