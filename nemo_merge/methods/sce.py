"""SCE: select entries by variance, weigh experts by energy, erase minority signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ._blocks import Block, Blocks
from ._method import Method
from ._parameters import parameter
from ._registry import register
from ._selection import Selection, largest


class _Statistics(NamedTuple):
    selection: Selection | None
    shares: Float[Tensor, " experts"]


@register
@dataclass(frozen=True)
class Sce(Method):
    """Weighs experts, tensor by tensor, by their energy where they differ most, and averages those that agree.

    Wan et al., 2024, FuseChat, arXiv 2408.07990, section 3.3. With ``d_t = w_t (expert_t - base)``, for every tensor:

    1. select: the ``select`` share of entries of largest variance over the experts, among those whose variance is not
       0 (with ``select=1`` all entries);
    2. calculate: ``eta_t = sum_selected d_t^2 / sum_t sum_selected d_t^2``;
    3. erase: entries of ``d_t`` whose sign is not that of ``sum_t d_t`` do not count;
       ``delta = sum_t eta_t d_t / sum_t eta_t`` over the experts that are left at the entry.

    ``mask_scope=weights`` uses the selection for ``eta`` alone, as the authors' code does; ``all`` also merges only
    selected entries, as mergekit does. Differences: mergekit falls back to equal shares when the mean squares sum to
    less than 1e-6, which is the size of real fine-tuning; here only when they are exactly 0.
    """

    name: ClassVar[str] = "sce"
    family: ClassVar[str] = "task vectors"
    source: ClassVar[str] = "Wan et al., 2024, arXiv 2408.07990"

    select: float = parameter(1.0, "Share of entries selected by variance.", low=0, high=1, low_open=True)
    mask_scope: Literal["weights", "all"] = parameter("weights", "What the selection is used for.")

    def statistics(self, blocks: Blocks, weights: Float[Tensor, " experts"]) -> _Statistics:
        def variance(block: Block) -> Float[Tensor, "1 *shape"]:
            return _variance(block.weighted(weights))

        selection = None
        if self.select < 1:
            different = sum(int(torch.count_nonzero(variance(block))) for block in blocks)
            selection = largest(blocks, variance, torch.tensor([int(self.select * different + 1e-9)]))
        energy = torch.zeros(len(weights), dtype=torch.float64)
        for block in blocks:
            deltas = block.weighted(weights)
            if selection is not None:
                deltas *= selection.mask(block, _variance(deltas))
            energy += torch.stack([torch.dot(delta, delta) for delta in deltas.double().flatten(1)]).cpu()
        total = energy.sum()
        # Squares of tiny task vectors are no reason for another formula; only when all are 0 nothing can be weighed.
        return _Statistics(selection, energy / total if total > 0 else torch.full_like(energy, 1 / len(weights)))

    def combine_block(
        self, block: Block, weights: Float[Tensor, " experts"], statistics: _Statistics
    ) -> Float[Tensor, "*shape"]:
        deltas = block.weighted(weights)
        if self.mask_scope == "all" and statistics.selection is not None:
            deltas *= statistics.selection.mask(block, _variance(deltas))
        sign = deltas.sum(0).sign_()
        along = deltas.mul_(sign).clamp_min_(0)  # exact: the sign is 1, -1 or 0
        shares = statistics.shares.to(along)
        total = torch.einsum("t...,t->...", along, shares)
        weight = torch.einsum("t...,t->...", along.sign_(), shares)
        return total.mul_(sign).div_(weight.clamp_min_(torch.finfo(weight.dtype).tiny))


def _variance(deltas: Float[Tensor, "experts *shape"]) -> Float[Tensor, "1 *shape"]:
    """Variance over the experts of every entry; exactly 0 where all are equal."""
    away = deltas[1:] - deltas[0]
    mean = away.sum(0).div_(len(deltas))
    squares = mean.square()
    for other in away:
        squares += other.sub_(mean).square_()
    return squares.div_(len(deltas))[None]
