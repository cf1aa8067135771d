"""Exact top-k selection over tensors, or whole models, that are never in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ._blocks import Block, Blocks

_EVERYTHING = torch.iinfo(torch.int64).max

_SAMPLE = 1 << 16
_HELD = 1 << 20  # values between two brackets that are kept in memory, for each list, whatever the tensor's size
_MOST_HELD = 48 << 20  # in all: 200 MB

Values = Callable[[Block], Float[Tensor, "lists *shape"]]
"""What is ranked: one or several lists of values, computed from a block."""


class Selection(NamedTuple):
    """Which entries belong to the largest of each list.

    Attributes:
        threshold: larger entries belong to them, smaller ones do not.
        last: among entries exactly at the threshold, those up to this flat index belong to them.
    """

    threshold: Float[Tensor, " lists"]
    last: Int[Tensor, " lists"]

    def mask(self, block: Block, values: Float[Tensor, "lists *shape"]) -> Float[Tensor, "lists *shape"]:
        """1 where an entry of the block is selected, else 0; ``values`` are those that were ranked.

        Numbers rather than booleans, which are several times slower to make and to multiply by.
        """
        ranked = values.to(torch.float32)
        mask = torch.empty(ranked.shape, device=ranked.device)
        for row, kept, threshold, last in zip(ranked, mask, self.threshold.tolist(), self.last.tolist(), strict=True):
            if block.start > last:
                torch.gt(row, threshold, out=kept)
                continue
            torch.ge(row, threshold, out=kept)
            if last < block.start + row.numel() - 1:
                flat = row.reshape(-1)[last - block.start + 1 :]
                kept.view(-1)[last - block.start + 1 :] = (flat > threshold).to(kept)
        return mask


def share_of(blocks: Blocks, share: float, lists: int) -> Int[Tensor, " lists"]:
    """``floor(share * numel)`` for every list; the slack keeps 0.2 * 10 from being 1."""
    return torch.full((lists,), int(share * blocks.numel + 1e-9), dtype=torch.int64)


def largest(blocks: Blocks, values: Values, counts: Int[Tensor, " lists"]) -> Selection:
    """Selects, from each list of values, exactly so many of the largest.

    Values are compared as float32; among equal ones the lowest index wins, so that the result does not depend on how
    the tensor is cut. Memory is constant. See :func:`selections` for several counts at once.

    Args:
        blocks: the tensor, or the model.
        values: what is ranked.
        counts: how many are wanted of each list.
    """
    return selections(blocks, values, [counts])[0]


def selections(blocks: Blocks, values: Values, counts: Sequence[Int[Tensor, " lists"]]) -> list[Selection]:
    """Several selections by :func:`largest` of the same values.

    A sample tells two values between which each threshold must lie. One pass counts what is above them and keeps what
    is between, about a hundredth of the values, in which the threshold is then found. Where the sample was wrong, or
    too many values are between (as when most are equal), it is found digit by digit instead.
    """
    wanted = torch.stack([count.clamp_min(1) for count in counts])
    if not any(count.any() for count in counts):
        return [Selection(torch.full((len(count),), torch.inf), torch.full((len(count),), -1)) for count in counts]
    brackets = _brackets(blocks, values, wanted)
    found = _search(blocks, values, wanted, brackets)
    results = []
    for count, rank, (threshold, last) in zip(counts, wanted, found, strict=True):
        if torch.isnan(threshold).any():
            threshold, last = _by_digits(blocks, values, rank)
        nothing = count == 0
        results.append(Selection(torch.where(nothing, torch.inf, threshold), torch.where(nothing, -1, last)))
    return results


def quantiles(blocks: Blocks, values: Values, ranks: Sequence[int], lists: int) -> Float[Tensor, "ranks lists"]:
    """Order statistics: the value of every rank (0 is the smallest) in each list."""
    places = selections(blocks, values, [torch.full((lists,), blocks.numel - rank) for rank in ranks])
    return torch.stack([place.threshold for place in places])


def _brackets(blocks: Blocks, values: Values, wanted: Int[Tensor, "ranks lists"]) -> Float[np.ndarray, "ranks lists 2"]:
    """For every rank and list two values between which the threshold lies, but for one sample in thousands."""
    parts = [values(block).flatten(1).to(torch.float32).numpy(force=True) for block in blocks.sample(_SAMPLE)]
    brackets = np.empty((*wanted.shape, 2), np.float32)
    brackets[:] = -np.inf, np.inf
    if not parts:
        return brackets
    sample = np.sort(np.concatenate(parts, axis=1), axis=1)[:, ::-1]
    size = sample.shape[1]
    for rank, row in enumerate(wanted.tolist()):
        for place, count in enumerate(row):
            share = count / max(blocks.numel, 1)
            middle, slack = share * size, 4 * (size * share * (1 - share)) ** 0.5 + 4
            first, end = int(middle - slack), int(middle + slack) + 1
            if end < size:
                brackets[rank, place, 0] = sample[place, end]
            if first >= 0:
                brackets[rank, place, 1] = sample[place, first]
    return brackets


class _Between:
    """Values of one list between two others, how many there are up to the end of each block, and how many are above.

    They stand in one buffer that grows: small arrays would lie between the freed blocks and keep these from being used.
    """

    def __init__(self) -> None:
        self.above = 0
        self.ends = [0]
        self._buffer = np.empty(1 << 12, np.float32)

    def add(self, ranked: np.ndarray, low: float, high: float) -> int:
        """Takes the values of the next block, and tells how many it keeps."""
        over, inside = ranked > high, ranked >= low
        inside ^= over
        self.above += int(np.count_nonzero(over))
        start, count = self.ends[-1], int(np.count_nonzero(inside))
        while start + count > len(self._buffer):
            self._buffer = np.concatenate([self._buffer, np.empty_like(self._buffer)])
        self._buffer[start : start + count] = ranked[inside]
        self.ends.append(start + count)
        return count

    @property
    def values(self) -> np.ndarray:
        """The values of all blocks."""
        return self._buffer[: self.ends[-1]]


class _Last(NamedTuple):
    """The last entry at a threshold that is selected: the how manieth of those in its block."""

    rank: int
    place: int
    number: int


def _search(
    blocks: Blocks, values: Values, wanted: Int[Tensor, "ranks lists"], brackets: Float[np.ndarray, "ranks lists 2"]
) -> list[tuple[Tensor, Tensor]]:
    """Thresholds and last indices; NaN thresholds where the brackets do not help."""
    ranks, lists = wanted.shape
    threshold = torch.full((ranks, lists), torch.nan)
    last = torch.full((ranks, lists), _EVERYTHING)
    found = [[_Between() for _ in range(lists)] for _ in range(ranks)]
    most = min(_HELD * ranks * lists + blocks.numel * lists // 8, _MOST_HELD)
    held = 0
    for block in blocks:
        for place, row in enumerate(values(block)):
            ranked = row.reshape(-1).to(torch.float32).numpy(force=True)
            for rank in range(ranks):
                held += found[rank][place].add(ranked, *brackets[rank, place])
        if held > most:  # too many equal values; the digits need no memory
            return list(zip(threshold, last, strict=True))
    lasts: dict[int, list[_Last]] = {}
    for rank in range(ranks):
        for place, between in enumerate(found[rank]):
            inside = between.values
            left = int(wanted[rank, place]) - between.above
            if not 1 <= left <= inside.size:
                continue
            value = np.partition(inside, inside.size - left)[inside.size - left]
            threshold[rank, place] = float(value)
            left -= int(np.count_nonzero(inside > value))
            equal = np.flatnonzero(inside == value)
            if len(equal) > left:  # more entries at the threshold than places left: the last one must be found
                index = int(np.searchsorted(between.ends, equal[left - 1], side="right")) - 1
                before = int(np.searchsorted(equal, between.ends[index]))
                lasts.setdefault(index, []).append(_Last(rank, place, left - before))
    for index, block in enumerate(blocks) if lasts else ():
        for item in lasts.get(index, ()):
            ranked = values(block)[item.place].reshape(-1).to(torch.float32).numpy(force=True)
            equal = np.flatnonzero(ranked == threshold[item.rank, item.place].numpy())
            last[item.rank, item.place] = block.start + int(equal[item.number - 1])
    return list(zip(threshold, last, strict=True))


def _by_digits(blocks: Blocks, values: Values, wanted: Int[Tensor, " lists"]) -> tuple[Tensor, Tensor]:
    """The same by two histograms, of the 16 high and the 16 low bits of a pattern that sorts like the number."""
    high = _histogram(blocks, values, len(wanted), lambda key: (key >> 16) + (1 << 15))
    high_digit, remaining = _digit(high, wanted)
    low = _histogram(blocks, values, len(wanted), lambda key: key & 0xFFFF, keep=high_digit - (1 << 15))
    low_digit, remaining = _digit(low, remaining)
    threshold = _from_key(((high_digit - (1 << 15)) << 16) | low_digit)
    last = torch.full_like(wanted, _EVERYTHING)
    if (low.gather(1, low_digit[:, None]).squeeze(1) > remaining).any():
        last = _last_index(blocks, values, threshold, remaining)
    return threshold, last


def _key(values: Float[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Bit patterns of float32 numbers as integers that sort like the numbers; both zeros are one."""
    bits = (values.to(torch.float32) + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _from_key(key: Int[Tensor, " lists"]) -> Float[Tensor, " lists"]:
    bits = key.to(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)


def _histogram(
    blocks: Blocks,
    values: Values,
    lists: int,
    digit: Callable[[Tensor], Tensor],
    keep: Int[Tensor, " lists"] | None = None,
) -> Int[Tensor, "lists 65536"]:
    counts = torch.zeros(lists, 1 << 16, dtype=torch.int64)
    for block in blocks:
        for place, row in enumerate(values(block)):
            key = _key(row.reshape(-1))
            if keep is not None:
                key = key[(key >> 16) == int(keep[place])]
            counts[place] += torch.bincount(digit(key), minlength=1 << 16).cpu()
    return counts


def _digit(counts: Int[Tensor, "lists 65536"], wanted: Int[Tensor, " lists"]) -> tuple[Tensor, Tensor]:
    """The digit of the wanted-th largest value, and how many of that digit are still wanted."""
    from_above = counts.flip(1).cumsum(1)
    position = torch.searchsorted(from_above, wanted[:, None]).squeeze(1)
    above = torch.where(position > 0, from_above.gather(1, (position - 1).clamp_min(0)[:, None]).squeeze(1), 0)
    return counts.shape[1] - 1 - position, wanted - above


def _last_index(
    blocks: Blocks, values: Values, threshold: Float[Tensor, " lists"], wanted: Int[Tensor, " lists"]
) -> Int[Tensor, " lists"]:
    last = torch.full_like(wanted, -1)
    remaining = wanted.clone()
    for block in blocks:
        for place, row in enumerate(values(block)):
            if remaining[place] > 0:
                ranked = row.reshape(-1).to(torch.float32)
                found = (ranked == threshold[place].to(ranked.device)).nonzero().squeeze(1)
                taken = min(len(found), int(remaining[place]))
                if taken:
                    last[place] = block.start + int(found[taken - 1])
                    remaining[place] -= taken
    return last


def _per_list(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device).view(-1, *[1] * (like.dim() - 1))


def largest_in(values: Float[Tensor, "*shape"], count: int) -> Bool[Tensor, "*shape"]:
    """True at exactly ``count`` of the largest of values that are in memory, lowest index first among equals."""
    flat = values.reshape(-1)
    if count <= 0 or count >= len(flat):
        return torch.full_like(values, count > 0, dtype=torch.bool)
    threshold = float(np.partition(flat.numpy(force=True), len(flat) - count)[len(flat) - count])
    mask = flat > threshold
    equal = (flat == threshold).nonzero().squeeze(1)
    mask[equal[: count - int(mask.sum())]] = True
    return mask.view(values.shape)


def ascending(magnitudes: Float[Tensor, "*lists length"]) -> Int[Tensor, "*lists length"]:
    """Indices that sort numbers that are not negative along the last dimension, lowest index first among equals.

    A number in float32 and its index make one integer: sorting these is many times faster than a stable sort.
    """
    return _sorted(magnitudes, lambda bits: bits)


def descending(magnitudes: Float[Tensor, "*lists length"]) -> Int[Tensor, "*lists length"]:
    """The same from the largest to the smallest, lowest index first among equals."""
    return _sorted(magnitudes, np.invert)


def _sorted(magnitudes: Tensor, order: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    values = magnitudes.to(torch.float32).contiguous().numpy(force=True)
    keys = order(values.view(np.uint32)).astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(values.shape[-1], dtype=np.uint64)
    keys.sort(axis=-1)
    keys &= np.uint64(0xFFFFFFFF)
    return torch.from_numpy(keys.view(np.int64)).to(magnitudes.device)
