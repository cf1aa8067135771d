"""Jobs that a verb leaves to a process of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, NemoMergeError, OutputError

if TYPE_CHECKING:
    from ..training.jobs import Job

_TAIL = 15


class JobError(NemoMergeError):
    """A job that stopped; its log says why."""

    exit_code = 1


def run_logged(
    job: Job, called: str, say: Callable[[str], None], shown: Callable[[str], bool] = lambda line: False
) -> None:
    """Does a job in a process of its own, whose output goes to a log beside the job's output.

    Args:
        job: what to do; it has an ``output``.
        called: what messages call it.
        say: called with what the job reports.
        shown: called with every other line; those for which it is true stay out of the log.

    Raises:
        ConfigError: the job found something that the user can solve.
        OutputError: the log cannot be written.
        JobError: it ended otherwise.
    """
    from ..training.jobs import ERROR_PREFIX, write_job
    from ..training.processes import run_job

    output = Path(str(vars(job)["output"]))
    log = output.with_name(f"{output.name}.log")
    try:
        log.touch()
    except OSError as error:
        raise OutputError(f"{log}: cannot be written ({error.strerror})") from error
    with tempfile.TemporaryDirectory() as folder, open(log, "w+", encoding="utf-8", errors="replace") as file:
        description = write_job(job, Path(folder, "job.json"))
        code = run_job(description, job.processes, say, lambda line: shown(line) or file.write(line), file)
        file.flush()
    if not code:
        return
    text = log.read_text(encoding="utf-8", errors="replace")
    _, known, message = text.rpartition(ERROR_PREFIX)
    if known:
        raise ConfigError(message.splitlines()[0] if job.processes > 1 else message.strip())
    tail = "\n".join(f"  | {line}" for line in text.splitlines()[-_TAIL:])
    raise JobError(f"{called} stopped with exit code {code}; the end of {log}:\n{tail}")
