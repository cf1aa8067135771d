"""The rows of a split as they are made: what an interrupted run leaves, and what the next one need not do again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from .examine import Row
from .problems import Problem
from .sessions import Session

_AUDIO = ("missing_audio", "unreadable_audio")


class Journal:
    """One file with a line per session, in the order of the corpus.

    Args:
        path: the file; one that is there is read again as far as it fits the sessions.
        key: of corpus, options and source: another key makes the file worthless.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self._key = key
        self._old = self._rows_of_an_earlier_run()
        self._file: IO[str] | None = None

    def __enter__(self) -> Journal:
        self._file = open(self.path, "w", encoding="utf-8")
        self._file.write(json.dumps(self._key) + "\n")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()
        self._earlier.unlink(missing_ok=True)

    @property
    def _earlier(self) -> Path:
        return self.path.with_name(self.path.name + ".old")

    def known(self, session: Session) -> Row | None:
        """The row that an earlier run made of this session; audio that could not be read then is tried again."""
        found = next(self._old, None)
        if found is None:
            return None
        if found["session"] != _digest(session):
            self._old = iter(())  # the corpus changed: nothing after this can be trusted
            return None
        problems = [Problem(**item) for item in found["problems"]]
        if any(problem.kind in _AUDIO for problem in problems):
            return None
        return Row(found["recording"], found["supervisions"], problems)

    def append(self, session: Session, row: Row) -> None:
        """Writes a row."""
        if self._file is None:
            raise RuntimeError("the journal is not open")
        problems = [asdict(problem) for problem in row.problems]
        content = {"session": _digest(session), **asdict(row), "problems": problems}
        self._file.write(json.dumps(content, ensure_ascii=False) + "\n")

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows, after the last was written."""
        if self._file:
            self._file.flush()
        with open(self.path, encoding="utf-8") as lines:
            next(lines)
            yield from map(json.loads, lines)

    def _rows_of_an_earlier_run(self) -> Iterator[dict[str, Any]]:
        if not self.path.is_file():
            return iter(())
        self.path.replace(self._earlier)
        return _complete_rows(self._earlier, self._key)


def _complete_rows(path: Path, key: str) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8", errors="replace") as lines:
        try:
            if json.loads(next(lines, "null")) == key:
                yield from map(json.loads, lines)
        except ValueError:  # a line that was not finished
            return


def _digest(session: Session) -> str:
    utterances = [(u.id, u.start, u.end, u.text, u.speaker, u.language, u.channel) for u in session.utterances]
    size = len(session.audio.content) if session.audio.content is not None else None
    content = repr((session.id, str(session.audio.path), session.audio.headerless, size, utterances))
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]
