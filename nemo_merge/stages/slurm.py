"""Runs tasks side by side as job arrays of SLURM, waits for them, and cancels them if it is interrupted."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, NemoMergeError
from ..training.processes import ENVIRONMENT, job_command
from .tasks import Follower, JobError, Output, Task, joined

_OWN = ("array", "output", "error", "wrap", "parsable", "wait", "nodes", "ntasks-per-node", "job-name")
_GPU_OPTIONS = ("gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket")
_VANISHED = "it is no longer in the queue and left no exit code"


class SlurmError(NemoMergeError):
    """SLURM refused an array, or is not here."""

    exit_code = 1


@dataclass(frozen=True)
class Slurm:
    """A SLURM cluster whose nodes see the same files as this machine.

    Attributes:
        options: of ``sbatch``, by their long names without dashes.
        cpu: whether tasks are to leave GPUs alone.
        every: seconds between looks at the queue.
        patience: seconds that a task may be out of the queue without its exit code: file systems take their time.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    cpu: bool = False
    every: float = 5.0
    patience: float = 60.0

    def __post_init__(self) -> None:
        for key, value in self.options.items():
            if key in _OWN:
                raise ConfigError(f"cmd: slurm: {key} is set by nemo_merge")
            if not isinstance(value, (str, int)) or (key == "time" and not isinstance(value, str)):
                # YAML reads 12:00:00 as a number of seconds, and sbatch a number as minutes.
                raise ConfigError(f"cmd: slurm: {key}={value!r} should be text in quotes, such as '12:00:00'")

    @property
    def gpus(self) -> int:
        """GPUs of each node that the options ask for."""
        for key in _GPU_OPTIONS:
            if asked := str(self.options.get(key, "")):
                count = asked.rpartition(":")[2]
                return int(count) if count.isdigit() else 1
        return 0

    def run(self, tasks: Sequence[Task], side_by_side: int, say: Callable[[str], None]) -> Iterator[str]:
        """See :class:`~nemo_merge.stages.tasks.Launcher`: an array for all tasks that need the same."""
        alike: dict[tuple[int, int, int], list[Task]] = {}
        for task in tasks:
            alike.setdefault((task.processes, task.nodes, task.gpus), []).append(task)
        elements: dict[tuple[str, str], _Element] = {}
        done: list[str] = []
        failures: list[JobError] = []
        try:
            for group in alike.values():
                array = self._submit(group, side_by_side)
                say(f"SLURM job {array}: {'; '.join(task.title for task in group)}")
                for index, task in enumerate(group, 1):
                    elements[array, str(index)] = _Element(task, Output(task, done.append, say))
            while elements:
                states = _states({array for array, _ in elements})
                for key, element in list(elements.items()):
                    code = _exit_code(element.task)
                    element.read(last=code is not None)
                    yield from _taken(done)
                    if code is None and not self._is_gone(element, key, states):
                        continue
                    del elements[key]
                    if code == 0 or (code is None and element.dropped):
                        continue
                    how = f"the process ended with exit code {code}" if code is not None else _accounted(key)
                    failures.append(element.output.error(f"SLURM job {'_'.join(key)}: {how}; log: {element.task.log}"))
                    for other in [key for key in elements if (states or {}).get(key) == "PENDING"]:
                        elements[other].dropped = True
                        _call("scancel", "--state=PENDING", "_".join(other))
                if elements:
                    time.sleep(self.every)
        except BaseException:
            if elements:
                _call("scancel", *sorted({array for array, _ in elements}))
            raise
        if failures:
            raise joined(failures)

    def _is_gone(self, element: _Element, key: tuple[str, str], states: Mapping[tuple[str, str], str] | None) -> bool:
        """Whether a task that has no exit code will not get one."""
        if states is None or key in states:
            element.missing_since = None
            return False
        if element.missing_since is None:
            element.missing_since = time.monotonic()
        return element.dropped or time.monotonic() - element.missing_since > self.patience

    def _submit(self, tasks: Sequence[Task], side_by_side: int) -> str:
        """Submits an array and returns its number."""
        first = tasks[0]
        folder = first.files[0].parent / "slurm"
        folder.mkdir(parents=True, exist_ok=True)
        script = folder / f"{first.files[0].stem}.sh"
        script.write_text(self._script(tasks), encoding="utf-8")
        options = {key.replace("_", "-"): value for key, value in self.options.items()}
        if first.gpus and not self.gpus:
            options["gres"] = f"gpu:{first.gpus}"
        if first.nodes > 1:
            options |= {"nodes": first.nodes, "ntasks-per-node": first.processes}
        for task in tasks:
            task.log.unlink(missing_ok=True)
            _code_file(task).unlink(missing_ok=True)
        command = [
            "sbatch",
            "--parsable",
            f"--job-name={first.files[0].stem}",
            f"--array=1-{len(tasks)}%{side_by_side}",
            f"--output={folder}/%A_%a.out",
            *(f"--{key}={value}" if value != "" else f"--{key}" for key, value in options.items()),
            str(script),
        ]
        if shutil.which("sbatch") is None:
            raise SlurmError("cmd: slurm: there is no sbatch here; start the recipe on a machine of the cluster")
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            raise SlurmError(f"{shlex.join(command)}: {made.stderr.strip() or f'exit code {made.returncode}'}")
        return made.stdout.strip().splitlines()[-1].partition(";")[0]

    def _script(self, tasks: Sequence[Task]) -> str:
        """A script whose element N does task N, and leaves the exit code in a file beside the log."""
        lines = ["#!/usr/bin/env bash", *(f"export {key}={value}" for key, value in ENVIRONMENT.items())]
        if self.cpu:
            lines.append("export CUDA_VISIBLE_DEVICES=")
        lines.append('case "$SLURM_ARRAY_TASK_ID" in')
        for index, task in enumerate(tasks, 1):
            if task.nodes > 1:  # Lightning finds its place in the environment that srun gives each process
                words = ["srun", sys.executable, "-m", "nemo_merge.training", *map(str, task.files)]
            else:
                words = job_command(task.files, task.processes)
            places = f"log={shlex.quote(str(task.log))}; code={shlex.quote(str(_code_file(task)))}"
            lines.append(f"  {index}) {places}; command=({shlex.join(words)}) ;;")
        lines += ["esac", '"${command[@]}" > "$log" 2>&1', "status=$?"]
        lines += ['echo $status > "$code.partial" && mv "$code.partial" "$code"', "exit $status", ""]
        return "\n".join(lines)


@dataclass
class _Element:
    """A task in the queue or at work."""

    task: Task
    output: Output
    dropped: bool = False
    missing_since: float | None = None

    def __post_init__(self) -> None:
        self._log = Follower(self.task.log)

    def read(self, *, last: bool) -> None:
        for line in self._log.lines(last=last):
            self.output.take(line)


def _taken(names: list[str]) -> Iterator[str]:
    while names:
        yield names.pop(0)


def _code_file(task: Task) -> Path:
    return task.log.with_suffix(".exit")


def _exit_code(task: Task) -> int | None:
    try:
        return int(_code_file(task).read_text())
    except (OSError, ValueError):
        return None


def _states(arrays: set[str]) -> dict[tuple[str, str], str] | None:
    """State of the elements that are in the queue, by array and index; None if the queue cannot be asked now."""
    asked = _call("squeue", "-h", "-r", "-j", ",".join(sorted(arrays)), "-o", "%F %K %T")
    if asked.returncode:
        return {} if "Invalid job id" in asked.stderr else None
    rows = (line.split() for line in asked.stdout.splitlines())
    return {(row[0], row[1]): row[2] for row in rows if len(row) == 3}


def _accounted(key: tuple[str, str]) -> str:
    """What SLURM's accounting says of a task that vanished."""
    asked = _call("sacct", "-n", "-X", "-P", "-j", "_".join(key), "-o", "State,ExitCode")
    state, _, code = asked.stdout.strip().partition("|")
    return f"{state}, exit code {code}" if asked.returncode == 0 and state else _VANISHED


def _call(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 1, "", str(error))
