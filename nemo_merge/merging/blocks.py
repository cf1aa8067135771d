"""Cuts tensors of base and experts into blocks of rows that fit the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..checkpoints import Checkpoint
from ..low_rank import AdaptedTensor
from ..methods import Block, Blocks

BLOCK_ELEMENTS = 1 << 18
"""Elements of one tensor in a block: 1 MB in float32, so that a block of a few experts stays in the cache."""


class TensorBlocks(Blocks):
    """One tensor of the base and of every expert, as blocks of whole rows.

    Args:
        base, experts: the tensors, of one shape; they may be views of mapped files, or a base with an adapter.
        dtype: type in which blocks come.
        start: flat index of the first element.
        name: name of the tensor.
        whole: give the tensor as a single block.
    """

    def __init__(
        self,
        base: Tensor,
        experts: Sequence[Tensor | AdaptedTensor],
        dtype: torch.dtype,
        *,
        start: int = 0,
        name: str = "",
        whole: bool = False,
    ) -> None:
        self._name = name
        self._base, self._experts = base, experts
        self._dtype = dtype
        self._start = start
        self.numel = base.numel()
        rows = base.shape[0] if base.dim() else 1
        self._step = max(1, rows if whole else BLOCK_ELEMENTS * rows // max(self.numel, 1))
        self._rows = rows

    def __iter__(self) -> Iterator[Block]:
        base, experts = self._base, self._experts
        row = self.numel // max(self._rows, 1)
        for first in range(0, self._rows, self._step):
            part = slice(first, first + self._step) if base.dim() else ...
            rows = base[part].to(self._dtype)
            stack = torch.empty((len(experts), *rows.shape), dtype=self._dtype, device=base.device)
            for place, expert in zip(stack, experts, strict=True):
                place.copy_(expert[part])  # type: ignore[index]  # an ellipsis only for stored tensors
            yield Block(rows, stack, self._start + first * row, self._name)


class ModelBlocks(Blocks):
    """Several tensors one after the other, as methods of model scope see them."""

    def __init__(self, tensors: Sequence[TensorBlocks]) -> None:
        self._tensors = tensors
        self.numel = sum(tensor.numel for tensor in tensors)

    def __iter__(self) -> Iterator[Block]:
        for tensor in self._tensors:
            yield from tensor


def sources(template: Checkpoint, experts: Sequence[Checkpoint], name: str) -> list[Tensor | AdaptedTensor]:
    """A tensor of every expert: as it is stored, or base and low-rank change where the expert is an adapter."""

    def source(expert: Checkpoint) -> Tensor | AdaptedTensor:
        change = expert.low_rank(name)
        return expert[name] if change is None else AdaptedTensor(template[name], change)

    return [source(expert) for expert in experts]


def compute_dtype(tensors: Sequence[Tensor | AdaptedTensor]) -> torch.dtype:
    """float64 if any of the tensors is (base plus adapter is), else float32: arithmetic never runs in 16 bits."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
