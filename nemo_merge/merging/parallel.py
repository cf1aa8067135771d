"""Threads: many tensors at once, each computed by one thread, so that results do not depend on their number."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch

T = TypeVar("T")


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


def in_threads(count: int, task: Callable[[int], T], cost: Callable[[int], Any], workers: int | None) -> list[T]:
    """Runs ``task(0)`` ... ``task(count - 1)`` in threads, and gives the results in this order.

    Args:
        count: number of tasks.
        task: what to do; the first error that one raises ends all.
        cost: tasks are started in the order of this key.
        workers: threads; the number of cores by default.
    """
    with single_threaded_torch():
        pool = ThreadPoolExecutor(workers or default_workers(), thread_name_prefix="nemo_merge")
        try:
            futures: dict[int, Future[T]] = {
                index: pool.submit(task, index) for index in sorted(range(count), key=cost)
            }
            done, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()  # raises what went wrong in a thread
        finally:
            # After an error or Ctrl-C the tensors still waiting are dropped, so that the user is not kept waiting too.
            pool.shutdown(wait=True, cancel_futures=True)
    return [futures[index].result() for index in range(count)]
