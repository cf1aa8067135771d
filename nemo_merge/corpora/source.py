"""The files of a corpus: decoded line by line, and remembered so that a second run knows what changed."""

from __future__ import annotations

import codecs
import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..errors import ConfigError, CorpusError
from .problems import Problem, Problems

_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
csv.field_size_limit(1 << 24)


class Source:
    """A corpus folder as recipes read it.

    Args:
        root: the folder, or a single file.
        problems: where lines that cannot be read are reported.

    Attributes:
        seen: size and modification time of every file and folder that was looked at, by path.
    """

    def __init__(self, root: Path, problems: Problems) -> None:
        self.root = root
        self.problems = problems
        self.seen: dict[str, list[int]] = {}

    def again(self) -> Source:
        """The same files for splits that read the tables of another one: what is wrong with those was said."""
        other = Source(self.root, _Said())
        other.seen = self.seen
        return other

    def note(self, path: Path) -> Path:
        """Remembers the state of a file or folder."""
        status = path.stat()
        # The size of a folder says nothing, and its time changes when an entry is added or taken away.
        self.seen[str(path)] = [0 if path.is_dir() else status.st_size, status.st_mtime_ns]
        return path

    def find(self, *patterns: str, under: Path | None = None) -> list[Path]:
        """Files below a folder whose names match one of the patterns, in alphabetical order; case does not matter."""
        found = []
        for folder, names in _walk(under or self.root):
            self.note(folder)
            found += [folder / name for name in names if _matches(name, patterns)]
        return sorted(found)

    def folder(self, *choices: str) -> Path:
        """The first of these folders that exists below the root, for archives unpacked one level deeper or not.

        Raises:
            CorpusError: none does.
        """
        for choice in choices:
            if (self.root / choice).is_dir():
                return self.root / choice
        raise CorpusError(f"{self.root}: has none of the folders {', '.join(choices)}; is it the corpus's folder?")

    def text(self, path: Path, encoding: str | None = None) -> str | None:
        """A whole file; None, and a problem, when it cannot be decoded."""
        content = self.note(_readable(path)).read_bytes()
        codec = _codec(encoding, content[:4])
        try:
            return content.decode(codec)
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            self.problems.add("encoding", f"{path}, line {line}", _undecodable(error, codec))
            return None

    def lines(self, path: Path, encoding: str | None = None) -> Iterator[tuple[str, str]]:
        """Place and text of every line; a line that cannot be decoded is reported and left out."""
        with open(self.note(_readable(path)), "rb") as stream:
            codec = _codec(encoding, stream.peek(4)[:4])
            if codec == "utf-16":  # line feeds are two bytes there
                whole = self.text(path, codec) or ""
                yield from ((f"{path}, line {n}", line) for n, line in enumerate(whole.splitlines(), 1))
                return
            for number, line in enumerate(stream, 1):
                place = f"{path}, line {number}"
                try:
                    yield place, line.decode(codec if number == 1 else codec.removesuffix("-sig")).rstrip("\r\n")
                except UnicodeDecodeError as error:
                    self.problems.add("encoding", place, _undecodable(error, codec))

    def rows(
        self, path: Path, delimiter: str = "\t", *, quoted: bool = False, encoding: str | None = None
    ) -> Iterator[tuple[str, dict[str, str]]]:
        """Place and cells, by column name, of a table whose first line names the columns.

        A row with too few or too many cells is reported and left out. A quoted cell may not run over lines.
        """
        header: list[str] | None = None
        for place, line in self.lines(path, encoding):
            if header is None:
                header = [name.strip() for name in _cells(line, delimiter, quoted)]
                continue
            if not line.strip():
                continue
            cells = _cells(line, delimiter, quoted)
            if len(cells) != len(header):
                self.problems.add("row", place, f"{len(cells)} cells, but the header names {len(header)} columns")
                continue
            yield place, dict(zip(header, cells, strict=True))

    def json_lines(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        """Place and object of every line."""
        for place, line in self.lines(path):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                self.problems.add("row", place, f"not JSON ({error})")
                continue
            if not isinstance(row, dict):
                self.problems.add("row", place, "not a JSON object")
            elif "\\u" in line and not _encodable(row):
                self.problems.add("encoding", place, "half of a character written as two (a lone surrogate)")
            else:
                yield place, row


class _Said(Problems):
    def extend(self, problems: Iterable[Problem]) -> None:
        """Nothing is noted twice."""


def require(row: Sequence[str] | dict[str, Any], names: Sequence[str], place: str) -> None:
    """Fails when a table lacks columns: no row of it can be read.

    Raises:
        CorpusError: names the missing columns and those that are there.
    """
    missing = [name for name in names if name not in row]
    if missing:
        raise CorpusError(f"{place}: no column {', '.join(missing)}; there are {', '.join(map(str, row))}")


def _cells(line: str, delimiter: str, quoted: bool) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter)) if quoted else line.split(delimiter)


def _walk(top: Path) -> Iterator[tuple[Path, list[str]]]:
    visited = set()  # links may lead back up
    for name, folders, files in os.walk(top, followlinks=True):
        if (real := os.path.realpath(name)) in visited:
            folders.clear()
            continue
        visited.add(real)
        yield Path(name), files


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return not name.startswith(".") and any(fnmatch(name.lower(), pattern.lower()) for pattern in patterns)


def _encodable(row: dict[str, Any]) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _readable(path: Path) -> Path:
    if not path.is_file():
        raise CorpusError(f"{path}: no such file; the layout of this corpus has one")
    return path


def _codec(encoding: str | None, start: bytes) -> str:
    for mark, codec in _BOMS:
        if start.startswith(mark):
            return codec
    if encoding is None:
        return "utf-8"
    try:
        return codecs.lookup(encoding).name
    except LookupError as error:
        raise ConfigError(f"encoding={encoding!r}: Python knows no such encoding; try latin-1 or cp1252") from error


def _undecodable(error: UnicodeDecodeError, codec: str) -> str:
    byte = error.object[error.start]
    return f"byte 0x{byte:02x} is not {codec.removesuffix('-sig').upper()}; pass encoding=latin-1 if that is what it is"
