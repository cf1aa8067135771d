"""Exact top-k selection by magnitude over tensors, or whole models, that are never in memory at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ._blocks import Block, Blocks

_EVERYTHING = torch.iinfo(torch.int64).max


class Selection(NamedTuple):
    """Which entries belong to the largest, for each expert.

    Attributes:
        threshold: entries of larger magnitude belong to them, entries of smaller magnitude do not.
        last: among entries exactly at the threshold, those up to this flat index belong to them.
    """

    threshold: Float[Tensor, " experts"]
    last: Int[Tensor, " experts"]

    def mask(self, block: Block, values: Float[Tensor, "experts *shape"]) -> Bool[Tensor, "experts *shape"]:
        """True where an entry of the block is selected."""
        magnitudes = _magnitudes(values)
        threshold = _per_expert(self.threshold.to(magnitudes), magnitudes)
        index = torch.arange(block.start, block.start + block.base.numel(), device=values.device).view(block.base.shape)
        at_threshold = (magnitudes == threshold) & (index <= _per_expert(self.last.to(index), magnitudes))
        return (magnitudes > threshold) | at_threshold


def largest_magnitudes(blocks: Blocks, density: float, experts: int) -> Selection:
    """Selects, for each expert, exactly ``floor(density * numel)`` entries of the task vector of largest magnitude.

    Magnitudes are compared as float32; among equal ones the lowest index wins, so that the result does not depend
    on how the tensor is cut. Memory is constant: the k-th largest value is found digit by digit, from two histograms
    of the 16 high and the 16 low bits of the float's bit pattern, which for positive numbers sorts like the number.

    Args:
        blocks: the tensor, or the model.
        density: share of entries to select, 0 to 1.
        experts: number of experts.
    """
    wanted = torch.full((experts,), int(density * blocks.numel + 1e-9), dtype=torch.int64)
    if not wanted.any():
        return Selection(torch.full((experts,), torch.inf), torch.full((experts,), -1))
    high = _histogram(blocks, experts, lambda bits: bits >> 16)
    high_digit, remaining = _digit(high, wanted)
    low = _histogram(blocks, experts, lambda bits: bits & 0xFFFF, keep=high_digit)
    low_digit, remaining = _digit(low, remaining)
    threshold = ((high_digit << 16) | low_digit).to(torch.int32).view(torch.float32)
    equal = low.gather(1, low_digit[:, None]).squeeze(1)
    last = torch.full((experts,), _EVERYTHING)
    if (equal > remaining).any():  # more entries at the threshold than places left: find the index of the last one
        last = _last_index(blocks, threshold, remaining)
    return Selection(threshold, last)


def _histogram(
    blocks: Blocks, experts: int, digit: Callable[[Tensor], Tensor], keep: Int[Tensor, " experts"] | None = None
) -> Int[Tensor, "experts 65536"]:
    counts = torch.zeros(experts, 1 << 16, dtype=torch.int64)
    for block in blocks:
        for expert, delta in enumerate(block.deltas):
            bits = _magnitudes(delta).reshape(-1).view(torch.int32)
            if keep is not None:
                bits = bits[(bits >> 16) == int(keep[expert])]
            counts[expert] += torch.bincount(digit(bits), minlength=1 << 16).cpu()
    return counts


def _digit(counts: Int[Tensor, "experts 65536"], wanted: Int[Tensor, " experts"]) -> tuple[Tensor, Tensor]:
    """The digit of the wanted-th largest value, and how many of that digit are still wanted."""
    from_above = counts.flip(1).cumsum(1)
    position = torch.searchsorted(from_above, wanted[:, None]).squeeze(1)
    above = torch.where(position > 0, from_above.gather(1, (position - 1).clamp_min(0)[:, None]).squeeze(1), 0)
    return counts.shape[1] - 1 - position, wanted - above


def _last_index(
    blocks: Blocks, threshold: Float[Tensor, " experts"], wanted: Int[Tensor, " experts"]
) -> Int[Tensor, " experts"]:
    last = torch.full_like(wanted, -1)
    remaining = wanted.clone()
    for block in blocks:
        for expert, delta in enumerate(block.deltas):
            if remaining[expert] > 0:
                found = (_magnitudes(delta).reshape(-1) == threshold[expert].to(delta.device)).nonzero().squeeze(1)
                taken = min(len(found), int(remaining[expert]))
                if taken:
                    last[expert] = block.start + int(found[taken - 1])
                    remaining[expert] -= taken
    return last


def _magnitudes(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return values.abs().to(torch.float32)


def _per_expert(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device).view(-1, *[1] * (like.dim() - 1))
