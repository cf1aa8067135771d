"""The processes of ``torchrun`` among which a merge is shared."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

from ..errors import NemoMergeError

T = TypeVar("T")

_PATIENCE = timedelta(days=7)
"""How long a rank waits for the others: a merge may take hours on one and minutes on another."""


class OtherRankError(NemoMergeError):
    """Another rank has said what is wrong; this one has nothing to add."""

    silent = True


@dataclass(frozen=True)
class Ranks:
    """The processes that share a merge.

    Attributes:
        rank: number of this process.
        count: number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that speaks and puts the output together."""
        return self.rank == 0

    def all(self, value: T) -> list[T]:
        """The values of all ranks, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What all ranks do before any goes on; if one fails, all do, and one says why.

        Raises:
            OtherRankError: on every rank but the first that failed.
        """
        error: BaseException | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        failed = [rank for rank, bad in enumerate(self.all(error is not None)) if bad]
        if failed and failed[0] != self.rank:
            raise OtherRankError(f"rank {failed[0]} of {self.count} failed") from error
        if error is not None:
            raise error

    def mine(self, items: Sequence[T], cost: Callable[[T], float]) -> list[T]:
        """This rank's share of some items: all ranks have about the same to do, and all work the shares out alike."""
        loads = [0.0] * self.count
        own = []
        for item in sorted(items, key=cost, reverse=True):
            rank = min(range(self.count), key=loads.__getitem__)
            loads[rank] += cost(item)
            if rank == self.rank:
                own.append(item)
        return own


ALONE = Ranks()
"""One process, as usual."""


@contextlib.contextmanager
def ranks_of_torchrun(device: str = "cpu") -> Iterator[Ranks]:
    """Joins the processes that torchrun started; a single rank elsewhere.

    Uses gloo for what is on the CPU and nccl for what is on a GPU.

    Args:
        device: where spectral work runs; on ``cuda`` every rank takes the GPU of its local number.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "RANK" not in os.environ:
        yield ALONE
        return
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Ranks(torch.distributed.get_rank(), count)
    finally:
        torch.distributed.destroy_process_group()
