"""Runs jobs of :mod:`nemo_merge.training` in processes of their own and passes on what they report."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from ..training.jobs import REPORT_PREFIX, Job, write_job


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
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    command = [sys.executable, *launcher, "-m", "nemo_merge.training", str(file)]
    # More BLAS threads than cores wait for each other by spinning, which can cost several times the work itself.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace", env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(REPORT_PREFIX):
                say(line.removeprefix(REPORT_PREFIX).strip())
            else:
                print(line, end="")
    if process.returncode:
        raise JobError(f"{name}: the process ended with exit code {process.returncode}")
