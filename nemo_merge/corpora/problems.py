"""What is wrong with the rows of a corpus: said at once, counted, and fatal when asked."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..errors import CorpusError

logger = logging.getLogger("nemo_merge")

KINDS = {
    "encoding": "bytes that are not text in the expected encoding",
    "xml": "a file that is not well-formed XML, or that declares entities",
    "row": "a row or tag that is not as the layout says",
    "tag": "a misspelt tag whose meaning is clear: repaired, the row is kept",
    "missing_audio": "audio that a transcript names and that does not exist",
    "unreadable_audio": "audio that cannot be opened",
    "missing_text": "audio or a segment without a transcript",
    "empty_text": "a transcript without words",
    "duplicate_id": "an id that was used before",
    "bounds": "a segment that ends before it starts or after the end of its audio",
    "overlap": "a segment that overlaps the one before it of the same speaker",
}
"""Kinds of problem; all but ``tag`` leave the row out."""
_SHOWN = 3


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: one of :data:`KINDS`.
        place: file and line.
        message: what is wrong there.
    """

    kind: str
    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


class Problems:
    """Notes the problems of a corpus as they are found.

    Args:
        strict: whether the first one is an error.

    Attributes:
        counts: number by kind since :meth:`start`.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.counts: Counter[str] = Counter()
        self._said: Counter[str] = Counter()
        self._waiting: list[Problem] = []
        self._sink: Callable[[Problem], None] = self._waiting.append

    def add(self, kind: str, place: str, message: str) -> None:
        """Notes a problem.

        Raises:
            CorpusError: in strict mode.
        """
        self.extend([Problem(kind, place, message)])

    def extend(self, problems: Iterable[Problem]) -> None:
        """Notes problems found elsewhere.

        Raises:
            CorpusError: in strict mode, if there is one.
        """
        for problem in problems:
            if self.strict:
                raise CorpusError(f"{problem} (strict: nothing is left out)")
            self.counts[problem.kind] += 1
            self._said[problem.kind] += 1
            self._sink(problem)
            if self._said[problem.kind] <= _SHOWN:
                logger.warning("%s", problem)
            elif self._said[problem.kind] == _SHOWN + 1:
                logger.warning("more of this kind (%s) are only counted here", problem.kind)

    def start(self, sink: Callable[[Problem], None]) -> None:
        """Begins a split: counts from what was noted since the last one ended, and passes every problem on."""
        waiting, self._waiting = self._waiting, []
        self._sink = sink
        for problem in waiting:
            sink(problem)

    def stop(self) -> Counter[str]:
        """Ends a split; its counts."""
        counts, self.counts = self.counts, Counter()
        self._sink = self._waiting.append
        return counts
