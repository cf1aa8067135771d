"""Runs jobs of :mod:`nemo_merge.training` in processes of their own and passes on what they report."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ..training.jobs import DONE_PREFIX, REPORT_PREFIX, Job, write_job


class JobError(RuntimeError):
    """A job's process ended with an error; its output is in the stage's log."""


def run_jobs(
    jobs: Mapping[str, Job], folder: Path, side_by_side: int, say: Callable[[str], None], *, together: bool = False
) -> Iterator[str]:
    """Runs every job in a process of its own, or under torchrun in several.

    Args:
        jobs: what to do, by name.
        folder: where the job files are kept; each can be run again by hand with ``python -m nemo_merge.training FILE``.
        side_by_side: number of processes at a time, torchrun's apart.
        say: called with what the jobs report.
        together: share ``side_by_side`` processes among all jobs, so that many small ones import NeMo once in each;
            for jobs of one process.

    Yields:
        Names of the jobs as they are finished.

    Raises:
        JobError: a job failed.
    """
    files = {name: write_job(job, folder / f"{name}.json") for name, job in jobs.items()}
    names = list(jobs)
    groups = [names[start::side_by_side] for start in range(side_by_side)] if together else [[name] for name in names]
    news: queue.SimpleQueue[str | Future[None]] = queue.SimpleQueue()  # names of finished jobs, and ended processes
    with ThreadPoolExecutor(max(1, side_by_side)) as pool:
        try:
            running = 0
            for group in filter(None, groups):
                command = [*_launcher(jobs[group[0]].processes), *(str(files[name]) for name in group)]
                future = pool.submit(_run, command, {str(files[name]): name for name in group}, news.put, say)
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


def _launcher(processes: int) -> list[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *(torchrun if processes > 1 else []), "-m", "nemo_merge.training"]


def _run(command: list[str], names: Mapping[str, str], done: Callable[[str], None], say: Callable[[str], None]) -> None:
    """Runs a process and passes on what it reports; ``names`` are those of its jobs by their files."""
    # More BLAS threads than cores wait for each other by spinning, which can cost several times the work itself.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace", env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(REPORT_PREFIX):
                say(line.removeprefix(REPORT_PREFIX).strip())
            elif line.startswith(DONE_PREFIX):
                done(names[line.removeprefix(DONE_PREFIX).strip()])
            else:
                print(line, end="")
    if process.returncode:
        raise JobError(f"{', '.join(names.values())}: the process ended with exit code {process.returncode}")
