"""What is wrong with rows of transcripts, and whether that stops the scoring."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ...errors import TranscriptError

_SHOWN = 10


class Problem(NamedTuple):
    """Something wrong with one row.

    Attributes:
        kind: what it is counted under, such as ``"duplicate id"``.
        file, line: where; lines count from 1.
        message: what is wrong, and with which utterance.
    """

    kind: str
    file: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


@dataclass
class Problems:
    """Collects the problems of all files, so that one run shows all of them."""

    found: list[Problem] = field(default_factory=list)

    def add(self, kind: str, file: Path, line: int, message: str) -> None:
        """Notes a problem."""
        self.found.append(Problem(kind, file, line, message))

    def counts(self) -> dict[str, int]:
        """Number of problems by kind."""
        return dict(Counter(problem.kind for problem in self.found))

    def lines(self, limit: int = _SHOWN) -> list[str]:
        """The first problems with file and line, and how many more there are."""
        shown = [str(problem) for problem in self.found[:limit]]
        rest = len(self.found) - limit
        return [*shown, f"... and {rest} more"] if rest > 0 else shown

    def stop_if_any(self) -> None:
        """Refuses to score.

        Raises:
            TranscriptError: there are problems; the message lists the first of them.
        """
        if self.found:
            count = "1 problem" if len(self.found) == 1 else f"{len(self.found)} problems"
            raise TranscriptError(f"{count} in the transcripts:\n" + "\n".join(f"  {line}" for line in self.lines()))
