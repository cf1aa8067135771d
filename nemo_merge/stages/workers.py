"""Runs jobs of :mod:`nemo_merge.training` in processes of their own and passes on what they report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ..training.jobs import Job, write_job
from .placement import PLACEMENT
from .tasks import JobError, Task

__all__ = ["JobError", "run_jobs"]


def run_jobs(
    jobs: Mapping[str, Job],
    folder: Path,
    side_by_side: int,
    say: Callable[[str], None],
    *,
    together: bool = False,
    work: Callable[[Job], float] = lambda job: 1.0,
) -> Iterator[str]:
    """Runs every job in a process of its own, or in several together, here or where the setting ``cmd`` says.

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
        JobError: jobs failed. Those that ran beside them are finished first.
    """
    placement = PLACEMENT.get()
    side_by_side = placement.side_by_side or side_by_side
    placed = {name: job.placed(placement.gpus, placement.resume) for name, job in jobs.items()}
    files = {name: write_job(job, folder / f"{name}.json") for name, job in placed.items()}
    shares = _shares({name: work(job) for name, job in jobs.items()}, side_by_side if together else len(jobs))
    tasks = []
    for names in filter(None, shares):
        first = placed[names[0]]
        gpus = min(first.processes, placement.gpus or 0)
        tasks.append(Task({files[name]: name for name in names}, first.processes, first.nodes, gpus))
    if tasks:
        yield from placement.launcher.run(tasks, side_by_side, say)


def _shares(work: Mapping[str, float], count: int) -> list[list[str]]:
    """Deals names out: the largest first, each to the share that has least, and the first of those that have alike."""
    shares: list[list[str]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for name in sorted(work, key=lambda name: -work[name]):
        least = loads.index(min(loads))
        shares[least].append(name)
        loads[least] += work[name]
    return shares
