"""Runs jobs of :mod:`nemo_merge.training` in processes of their own and passes on what they report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from ..training.jobs import Job, write_job
from ..training.processes import run_job


class JobError(RuntimeError):
    """A job's process ended with an error; its output is in the stage's log."""


def run_jobs(jobs: Mapping[str, Job], folder: Path, side_by_side: int, say: Callable[[str], None]) -> Iterator[str]:
    """Runs every job in a process of its own, or under torchrun in several.

    Args:
        jobs: what to do, by name.
        folder: where the job files are kept; each can be run again by hand with ``python -m nemo_merge.training FILE``.
        side_by_side: number of jobs at a time.
        say: called with what the jobs report.

    Yields:
        Names of the jobs as they are finished.

    Raises:
        JobError: a job failed.
    """
    with ThreadPoolExecutor(max(1, side_by_side)) as pool:
        futures = {}
        try:
            for name, job in jobs.items():
                file = write_job(job, folder / f"{name}.json")
                futures[pool.submit(_run, name, file, job.processes, say)] = name
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _run(name: str, file: Path, processes: int, say: Callable[[str], None]) -> None:
    code = run_job(file, processes, say, lambda line: print(line, end=""))
    if code:
        raise JobError(f"{name}: the process ended with exit code {code}")
