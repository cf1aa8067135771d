"""Cuts tensors of base and experts into blocks of rows that fit the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import EllipsisType

import torch
from torch import Tensor

from ..checkpoints import Checkpoint
from ..low_rank import AdaptedTensor
from ..methods import Block, Blocks
from ..posterior import Posterior

BLOCK_ELEMENTS = 1 << 16
"""Elements of one tensor in a block: 256 kB in float32, so that a block of a few experts stays in the cache."""


class TensorBlocks(Blocks):
    """One tensor of the base and of every expert, as blocks of whole rows.

    Args:
        base, experts: the tensors, of one shape; they may be views of mapped files, or a base with an adapter.
        dtype: type in which blocks come.
        start: flat index of the first element.
        name: name of the tensor.
        whole: give the tensor as a single block.
        posteriors: the experts', for methods that ask for them.
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
        posteriors: Sequence[Posterior] = (),
    ) -> None:
        self._name = name
        self._base, self._experts, self._posteriors = base, experts, posteriors
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
            part: slice | EllipsisType = slice(first, first + self._step) if base.dim() else ...
            yield Block(
                base[part].to(self._dtype),
                [expert[part].to(base.device) for expert in experts],  # type: ignore[index]  # an ellipsis only for stored tensors
                self._start + first * row,
                self._name,
                [posterior[part] for posterior in self._posteriors],
            )

    def sample(self, count: int) -> Iterator[Block]:
        stored = [tensor for tensor in self._experts if isinstance(tensor, Tensor)]
        if len(stored) < len(self._experts):
            yield from self  # base plus adapter is not stored anywhere: single entries cost as much as all
            return
        # An odd stride, so that entries of all columns come up.
        stride = max(1, self.numel // max(count, 1)) | 1
        base, *experts = (tensor.reshape(-1)[::stride].to(self._base.device) for tensor in (self._base, *stored))
        yield Block(base.to(self._dtype), experts, self._start, self._name)


class ModelBlocks(Blocks):
    """Several tensors one after the other, as methods of model scope see them."""

    def __init__(self, tensors: Sequence[TensorBlocks]) -> None:
        self._tensors = tensors
        self.numel = sum(tensor.numel for tensor in tensors)

    def __iter__(self) -> Iterator[Block]:
        for tensor in self._tensors:
            yield from tensor

    def sample(self, count: int) -> Iterator[Block]:
        share = count / max(self.numel, 1)
        for tensor in self._tensors:
            if (wanted := round(tensor.numel * share)) > 0:
                yield from tensor.sample(wanted)


def sources(template: Checkpoint, experts: Sequence[Checkpoint], name: str) -> list[Tensor | AdaptedTensor]:
    """A tensor of every expert: as it is stored, or base and low-rank change where the expert is an adapter."""

    def source(expert: Checkpoint) -> Tensor | AdaptedTensor:
        change = expert.low_rank(name)
        return expert[name] if change is None else AdaptedTensor(template[name], change)

    return [source(expert) for expert in experts]


def compute_dtype(tensors: Sequence[Tensor | AdaptedTensor]) -> torch.dtype:
    """float64 if any of the tensors is (base plus adapter is), else float32: arithmetic never runs in 16 bits."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
