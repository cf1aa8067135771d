"""Threads: many tensors at once, each computed by one thread, so that results do not depend on their number."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch


def default_workers() -> int:
    """Number of cores this process may use, at most 8."""
    return max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


@contextlib.contextmanager
def single_threaded_torch() -> Iterator[None]:
    """Keeps torch's kernels on one thread each: parallel sums would change in the last digit with their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
