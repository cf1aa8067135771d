"""DELLA: drop entries of task vectors at random, small ones rather than large ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError
from ._blocks import Block, per_expert
from ._parameters import parameter
from ._random import bernoulli
from ._registry import register
from ._selection import ascending
from ._sparse import Combine, SparseMethod


@register
@dataclass(frozen=True)
class Della(SparseMethod):
    """Keeps an entry with a probability that rises with the rank of its magnitude in its row.

    Deep et al., 2024, DELLA-Merging, arXiv 2406.11617, section 3 (MAGPRUNE). With ``d_t = w_t (expert_t - base)`` and
    the rank of ``|d_t|`` in its row of n entries (0 the smallest):
    ``p = density - epsilon + 2 epsilon rank / (n - 1)``, ``d'_t = m d_t / p`` with ``m ~ Bernoulli(p)``. Then
    ``combine=ties`` (sign election and mean; default scale 1) or ``linear`` (sum; 1/T). A row is what belongs to one
    output unit; a vector is one row; in a row of one entry p is ``density``.

    ``epsilon`` of 0 is DARE with the same seed. Differences: mergekit rescales to the L1 norm of the tensor instead of
    dividing by p, takes input channels for rows in convolutions, and fails on rows of one entry.
    """

    name: ClassVar[str] = "della"
    source: ClassVar[str] = "Deep et al., 2024, arXiv 2406.11617"

    combine: Combine = parameter(
        "ties", "ties averages, per entry, those with the elected sign; linear adds the sparse task vectors."
    )
    density: float = parameter(0.5, "Mean probability with which an entry is kept.", low=0, high=1, low_open=True)
    epsilon: float = parameter(0.1, "Half the range of probabilities within a row.", low=0, high=0.5)
    seed: int = parameter(0, "Seed of the random numbers.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon and not (self.density - self.epsilon > 0 and self.density + self.epsilon <= 1):
            raise ConfigError(
                f"della: density={self.density} and epsilon={self.epsilon} give probabilities outside (0, 1]; "
                "choose epsilon below density and at most 1 - density"
            )

    @property
    def by_row(self) -> bool:
        return True

    def combine_block(
        self, block: Block, weights: Float[Tensor, " experts"], statistics: Any
    ) -> Float[Tensor, "*shape"]:
        deltas = block.deltas
        for expert, delta in enumerate(deltas):
            kept = self._probability(delta.abs())
            delta *= bernoulli(block, self.seed, expert, kept)
            delta /= kept
        return self.combined(deltas.mul_(per_expert(weights, deltas)))

    def _probability(self, magnitude: Float[Tensor, "*shape"]) -> float | Float[Tensor, "*shape"]:
        rows = magnitude.reshape(magnitude.shape[0] if magnitude.dim() > 1 else 1, -1)
        longest = rows.shape[1] - 1
        if longest == 0 or self.epsilon == 0:
            return self.density
        order = ascending(rows)
        ramp = torch.linspace(
            self.density - self.epsilon, self.density + self.epsilon, longest + 1, dtype=rows.dtype, device=rows.device
        )
        return torch.empty_like(rows).scatter_(1, order, ramp.expand_as(rows)).view_as(magnitude)
