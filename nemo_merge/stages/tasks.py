"""What a process is to do, what it says, and how it ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..errors import NemoMergeError
from ..training.jobs import DONE_PREFIX, ERROR_PREFIX
from ..training.processes import pass_on

_TAIL = 20


class JobError(NemoMergeError):
    """Jobs whose processes ended with an error, with the end of what these said."""

    exit_code = 1


@dataclass(frozen=True)
class Task:
    """Jobs that one process does one after the other, or that several do together.

    Attributes:
        names: of the jobs, by their files.
        processes: on each machine that do each job together.
        nodes: machines.
        gpus: for each machine.
    """

    names: Mapping[Path, str]
    processes: int = 1
    nodes: int = 1
    gpus: int = 0

    @property
    def files(self) -> list[Path]:
        """Job files, in order."""
        return list(self.names)

    @property
    def title(self) -> str:
        """For messages: the names of its jobs."""
        return ", ".join(self.names.values())

    @property
    def log(self) -> Path:
        """Where its output goes if it runs elsewhere: beside its first job file."""
        return self.files[0].with_suffix(".log")


class Launcher(Protocol):
    """Somewhere tasks can run."""

    def run(self, tasks: Sequence[Task], side_by_side: int, say: Callable[[str], None]) -> Iterator[str]:
        """Runs tasks, at most so many at a time, and yields the names of jobs as they are finished.

        Tasks that wait for their turn are dropped when one fails; those that run go on to their end.

        Raises:
            JobError: tasks failed; all the others are finished or dropped.
        """
        ...


@dataclass
class Output:
    """What a task says, line by line: jobs that are done, news for the user, and everything else for the log."""

    task: Task
    done: Callable[[str], object]
    say: Callable[[str], None]
    _tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL))

    def take(self, line: str) -> None:
        """Passes a line on."""
        pass_on(line, self.say, self._other)

    def error(self, how: str) -> JobError:
        """The task's failure: what the user can solve, or the end of its output."""
        for line in self._tail:
            _, known, message = line.partition(ERROR_PREFIX)
            if known:
                return JobError(f"{self.task.title}: {message.strip()}")
        return JobError("\n".join([f"{self.task.title}: {how}", *(f"  | {line.rstrip()}" for line in self._tail)]))

    def _other(self, line: str) -> None:
        if line.startswith(DONE_PREFIX):
            self.done(self.task.names[Path(line.removeprefix(DONE_PREFIX).strip())])
        else:
            self._tail.append(line)
            print(line, end="" if line.endswith("\n") else "\n", flush=True)


class Follower:
    """Reads a file that another process writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._place = 0

    def lines(self, *, last: bool = False) -> list[str]:
        """Whole lines that have come since; at last, what is left too."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._place)
                content = file.read()
        except FileNotFoundError:
            return []
        if not last:
            content = content[: content.rfind(b"\n") + 1]
        self._place += len(content)
        return content.decode(errors="replace").splitlines(keepends=True)


def joined(failures: Sequence[JobError]) -> JobError:
    """Several failures as one."""
    return failures[0] if len(failures) == 1 else JobError("\n".join(str(error) for error in failures))
