"""Runs job files in a process of their own, or under torchrun in several."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from .jobs import REPORT_PREFIX, Report

_PATIENCE = 20  # seconds for a process to end by itself


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
    files = [file] if isinstance(file, Path) else file
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    command = [sys.executable, *launcher, "-m", "nemo_merge.training", *map(str, files)]
    # More BLAS threads than cores wait for each other by spinning, which can cost several times the work itself.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace", env=environment
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(REPORT_PREFIX):
                    say(line.removeprefix(REPORT_PREFIX).strip())
                else:
                    other(line)
            return process.wait()
        except BaseException:
            process.terminate()  # torchrun passes it on to its workers
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
