"""Runs tasks in processes of their own and passes on what they report."""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any

_reports: Any = None


def report(message: str) -> None:
    """Called in a worker: shows a line to the user."""
    if _reports is not None:
        _reports.put(message)


def run_tasks(
    function: Callable[[Any], Any], tasks: Sequence[Any], jobs: int, say: Callable[[str], None]
) -> Iterator[tuple[Any, Any]]:
    """Runs ``function(task)`` for every task in up to ``jobs`` fresh processes.

    A process serves several tasks, so that NeMo is imported once in each. BLAS is kept to one thread from the start;
    a task that wants more sets them itself.

    Args:
        function: a function of a module, so that it can be sent to another process.
        tasks: its arguments.
        jobs: number of processes.
        say: called with what the tasks :func:`report`.

    Yields:
        ``(task, result)`` as they are finished.
    """
    if not tasks:
        return
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    with ProcessPoolExecutor(min(jobs, len(tasks)), context, _initialise, (reports,)) as pool:
        futures = {pool.submit(function, task): task for task in tasks}
        waiting = set(futures)
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                _drain(reports, say)
                for future in done:
                    yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    _drain(reports, say)


def _initialise(reports: Any) -> None:
    global _reports
    _reports = reports
    # Two OpenMP teams on two cores wait for each other by spinning, which can cost ten times the work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _drain(reports: Any, say: Callable[[str], None]) -> None:
    while True:
        try:
            say(reports.get_nowait())
        except queue.Empty:
            return
