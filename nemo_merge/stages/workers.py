"""Runs jobs of :mod:`nemo_merge.training` in processes of their own and passes on what they report."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ..training.jobs import DONE_PREFIX, Job, write_job
from ..training.processes import run_job


class JobError(RuntimeError):
    """A job's process ended with an error; its output is in the stage's log."""


def run_jobs(
    jobs: Mapping[str, Job],
    folder: Path,
    side_by_side: int,
    say: Callable[[str], None],
    *,
    together: bool = False,
    work: Callable[[Job], float] = lambda job: 1.0,
) -> Iterator[str]:
    """Runs every job in a process of its own, or under torchrun in several.

    Args:
        jobs: what to do, by name.
        folder: where the job files are kept; each can be run again by hand with ``python -m nemo_merge.training FILE``.
        side_by_side: number of processes at a time, torchrun's apart.
        say: called with what the jobs report.
        together: share ``side_by_side`` processes among all jobs, so that many small ones import NeMo once in each;
            for jobs of one process.
        work: how much a job is to do; jobs that share processes are dealt out so that these end at about the same time.

    Yields:
        Names of the jobs as they are finished.

    Raises:
        JobError: a job failed.
    """
    files = {name: write_job(job, folder / f"{name}.json") for name, job in jobs.items()}
    groups = _shares({name: work(job) for name, job in jobs.items()}, side_by_side if together else len(jobs))
    news: queue.SimpleQueue[str | Future[None]] = queue.SimpleQueue()  # names of finished jobs, and ended processes
    with ThreadPoolExecutor(max(1, side_by_side)) as pool:
        try:
            running = 0
            for group in filter(None, groups):
                future = pool.submit(
                    _run, {files[name]: name for name in group}, jobs[group[0]].processes, news.put, say
                )
                future.add_done_callback(news.put)
                running += 1
            while running:
                item = news.get()
                if isinstance(item, str):
                    yield item
                else:
                    item.result()
                    running -= 1
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _shares(work: Mapping[str, float], count: int) -> list[list[str]]:
    """Deals names out: the largest first, each to the share that has least, and the first of those that have alike."""
    shares: list[list[str]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for name in sorted(work, key=lambda name: -work[name]):
        least = loads.index(min(loads))
        shares[least].append(name)
        loads[least] += work[name]
    return shares


def _run(names: Mapping[Path, str], processes: int, done: Callable[[str], None], say: Callable[[str], None]) -> None:
    """Runs jobs in one process, or in several together, and passes on what they report; ``names`` by their files."""

    def other(line: str) -> None:
        if line.startswith(DONE_PREFIX):
            done(names[Path(line.removeprefix(DONE_PREFIX).strip())])
        else:
            print(line, end="")

    if code := run_job(list(names), processes, say, other):
        raise JobError(f"{', '.join(names.values())}: the process ended with exit code {code}")
