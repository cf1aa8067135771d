"""Runs job files in a process of their own, or under torchrun in several."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from .jobs import REPORT_PREFIX, Report

_PATIENCE = 20  # seconds for a process to end by itself

ENVIRONMENT = {
    # More BLAS threads than cores wait for each other by spinning, which can cost several times the work itself.
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}
"""Variables that every job gets."""


class Processes:
    """Processes that are ended together; threads may start and wait for them while another ends all."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    @contextlib.contextmanager
    def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        errors: IO[str] | int | None,
        output: int | None = subprocess.PIPE,
    ) -> Iterator[subprocess.Popen[str]]:
        """A process and those it starts, in a group of their own; the group is ended if the block is left early."""
        with self._lock:
            if self._stopped:
                raise InterruptedError("other processes were ended meanwhile")
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                text=True,
                errors="replace",
                env={**os.environ, **environment},
                start_new_session=True,
            )
            self._running.add(process)
        try:
            yield process
        except BaseException:
            _end([process])
            raise
        finally:
            with self._lock:
                self._running.discard(process)
            if process.stdout is not None:
                process.stdout.close()

    def stop(self) -> None:
        """Ends all that run, gently at first; none can be started after that."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        _end(running)


def job_command(files: Sequence[Path], processes: int = 1) -> list[str]:
    """The words that run jobs one after the other, under torchrun if several processes do each together."""
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    return [sys.executable, *launcher, "-m", "nemo_merge.training", *map(str, files)]


def run_job(
    file: Path | Sequence[Path],
    processes: int,
    say: Report,
    other: Callable[[str], object],
    errors: IO[str] | int | None = None,
) -> int:
    """Runs ``python -m nemo_merge.training FILE...``, passes on what it reports, and ends it if it is interrupted.

    Args:
        file: what to do, see :func:`~nemo_merge.training.jobs.write_job`; several are done one after the other.
        processes: how many do it together.
        say: called with what the job reports.
        other: called with every other line of its output.
        errors: where its standard error goes; this process's own by default.

    Returns:
        Its exit code.
    """
    command = job_command([file] if isinstance(file, Path) else file, processes)
    with Processes().start(command, ENVIRONMENT, errors) as process:
        assert process.stdout is not None
        for line in process.stdout:
            pass_on(line, say, other)
        return process.wait()


def pass_on(line: str, say: Report, other: Callable[[str], object]) -> None:
    """Tells what a job reports from the rest of its output."""
    if line.startswith(REPORT_PREFIX):
        say(line.removeprefix(REPORT_PREFIX).strip())
    else:
        other(line)


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """SIGTERM to each group, which torchrun passes on to its workers, and SIGKILL to those that stay."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        left = [process for process in processes if process.poll() is None]
        for process in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
        for process in left:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
