"""Runs tasks on this machine, or through a command that takes them elsewhere: ``ssh``, ``srun``, Kaldi's ``run.pl``."""

from __future__ import annotations

import os
import queue
import shlex
import string
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import ConfigError, did_you_mean
from ..training.processes import ENVIRONMENT, Processes, job_command
from .tasks import Follower, JobError, Output, Task, joined

PLACEHOLDERS = ("command", "log", "name", "gpus", "processes")
_LOOK = 0.3  # seconds between looks at a log
_PASSED_ON = ("PYTHONPATH",)


@dataclass(frozen=True)
class Local:
    """Processes of this machine.

    Attributes:
        gpus: identities of the GPUs that tasks may use, each of them by one task at a time; none for the processor,
            None to leave it to the tasks.
        template: words of the command that runs a task, with :data:`PLACEHOLDERS` in braces; a task itself if empty.
    """

    gpus: Sequence[str] | None = None
    template: tuple[str, ...] = ()

    def run(self, tasks: Sequence[Task], side_by_side: int, say: Callable[[str], None]) -> Iterator[str]:
        """See :class:`~nemo_merge.stages.tasks.Launcher`."""
        if many := [task for task in tasks if task.nodes > 1]:
            raise ConfigError(f"{many[0].title}: num_nodes={many[0].nodes} needs a cluster; set cmd to slurm")
        processes, slots = Processes(), _Slots(self.gpus or ())
        news: queue.SimpleQueue[str | Future[None]] = queue.SimpleQueue()  # names of finished jobs, and ended tasks
        failures: list[JobError] = []

        def run(task: Task) -> None:
            try:
                if not failures:
                    self._run(task, processes, slots, Output(task, news.put, say))
            except JobError as error:
                failures.append(error)

        with ThreadPoolExecutor(max(1, min(side_by_side, len(tasks)))) as pool:
            try:
                for task in tasks:
                    pool.submit(run, task).add_done_callback(news.put)
                left = len(tasks)
                while left:
                    item = news.get()
                    if isinstance(item, str):
                        yield item
                    else:
                        item.result()
                        left -= 1
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                processes.stop()
                raise
        if failures:
            raise joined(failures)

    def _run(self, task: Task, processes: Processes, slots: _Slots, output: Output) -> None:
        command = job_command(task.files, task.processes)
        if self.template:
            code = _through(self.template, task, command, self._environment(), processes, output)
        else:
            with slots.taken(task.gpus) as ids:
                code = _here(command, self._environment(ids), processes, output)
        if code:
            raise output.error(f"the process ended with exit code {code}")

    def _environment(self, ids: Sequence[str] = ()) -> dict[str, str]:
        if ids:
            return {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ",".join(ids)}
        return {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""} if self.gpus is not None and not self.gpus else ENVIRONMENT


def read_template(text: str, gpus: int) -> tuple[str, ...]:
    """Words of a command with placeholders.

    A command of Kaldi's kind (``run.pl``, ``queue.pl``, ``slurm.pl``) that has none gets its arguments as it wants
    them: ``--gpu``, the log, the command. Any other gets the command at its end.

    Raises:
        ConfigError: a placeholder that does not exist, or quotes that do not match.
    """
    try:
        words = shlex.split(text)
        found = {name for word in words for _, name, _, _ in string.Formatter().parse(word) if name is not None}
    except ValueError as error:
        raise ConfigError(f"cmd: {text!r}: {error}") from error
    for name in found:
        if name not in PLACEHOLDERS:
            hint = did_you_mean(name, PLACEHOLDERS)
            raise ConfigError(f"cmd: {text!r} has no placeholder {{{name}}}{hint}; there are {', '.join(PLACEHOLDERS)}")
    if "command" not in found:
        kaldi = words[0].endswith(".pl") and "log" not in found
        words += [*(["--gpu", "{gpus}"] if kaldi and gpus else []), *(["{log}"] if kaldi else []), "{command}"]
    return tuple(words)


class _Slots:
    """GPUs, each of which one task at a time may have."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._free = list(ids)
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, count: int) -> Iterator[list[str]]:
        """Waits for so many GPUs, and keeps them for the time of the block."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._free) >= count)
            ids, self._free = self._free[:count], self._free[count:]
        try:
            yield ids
        finally:
            with self._changed:
                self._free += ids
                self._changed.notify_all()


def _here(command: Sequence[str], environment: Mapping[str, str], processes: Processes, output: Output) -> int:
    with processes.start(command, environment, subprocess.STDOUT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            output.take(line)
        return process.wait()


def _through(
    template: Sequence[str],
    task: Task,
    command: Sequence[str],
    environment: Mapping[str, str],
    processes: Processes,
    output: Output,
) -> int:
    """Runs a command by another one, whose log is read while it grows if it keeps one."""
    # The other machine does not get this one's variables.
    passed = {**{key: os.environ[key] for key in _PASSED_ON if key in os.environ}, **environment}
    command = ["env", *(f"{key}={value}" for key, value in passed.items()), *command]
    values = {"log": task.log, "name": task.files[0].stem, "gpus": task.gpus, "processes": task.processes}
    words: list[str] = []
    for word in template:
        words += command if word == "{command}" else [word.format(command=shlex.join(command), **values)]
    if not any("{log}" in word for word in template):
        return _here(words, {}, processes, output)
    log = Follower(task.log)
    task.log.unlink(missing_ok=True)
    with processes.start(words, {}, None, None) as process:
        while (code := process.poll()) is None:
            for line in log.lines():
                output.take(line)
            time.sleep(_LOOK)
        for line in log.lines(last=True):
            output.take(line)
        return code
