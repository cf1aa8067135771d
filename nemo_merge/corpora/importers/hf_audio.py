"""Hugging Face audio data sets on disk: parquet files, or an audio folder with ``metadata.jsonl`` or ``.csv``.

Files are read one row after the other, each with its own columns; the ``datasets`` package is not needed, and data sets
that it refuses because their parts have different columns are read too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError, CorpusError
from ..sessions import Audio, Session, Utterance, single
from ..source import Source, require

_SHARD = re.compile(r"^(.+?)-\d+-of-\d+(?:-[0-9a-f]+)?$")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.parquet")
_BATCH = 16  # rows held at a time: each holds the bytes of an audio file
SPLITS = {"validation": "dev", "valid": "dev", "val": "dev", "eval": "test", "devel": "dev"}
"""Names of splits that are called something else here."""


@dataclass(frozen=True)
class Columns:
    """Which columns hold what.

    Attributes:
        audio: a parquet struct of ``bytes`` and ``path``, or the path of a file.
        text: the transcript.
        id, speaker, gender, language: taken when they are there.
        keep: columns that supervisions keep in ``custom``.
    """

    text: str
    audio: str = "audio"
    id: str | None = None
    speaker: str | None = None
    gender: str | None = None
    language: str | None = None
    keep: tuple[str, ...] = ()


Change = Callable[[Utterance, dict[str, Any]], Utterance | None]


def find_parts(source: Source, root: Path | None = None) -> dict[str, list[Path]]:
    """Parquet and metadata files below a folder by split, which their name or folder gives."""
    parts: dict[str, list[Path]] = {}
    files = source.find("*.parquet", *_METADATA, under=root) if (root or source.root).is_dir() else [source.root]
    for path in files:
        parts.setdefault(split_of(path, root or source.root), []).append(path)
    return parts


def split_of(path: Path, root: Path) -> str:
    """The split of a file: ``data/test-00000-of-00002.parquet``, ``test/metadata.csv``, ``train_3.parquet``.

    Example:
        >>> split_of(Path("d/data/validation-00000-of-00001.parquet"), Path("d"))
        'dev'
        >>> split_of(Path("d/xtts/test1/metadata.jsonl"), Path("d"))
        'xtts-test1'
    """
    if path.name in _METADATA:
        folders = [part for part in path.relative_to(root).parts[:-1] if part not in ("data", "audio")]
        folders = [SPLITS.get(part, part) for part in folders]
        return "-".join(folders) or "all"
    match = _SHARD.match(path.stem)
    name = match[1] if match else path.parent.name if path.parent != root and path.stem.isdigit() else path.stem
    return SPLITS.get(name, name)


def hf_sessions(
    source: Source, files: Sequence[Path], columns: Columns, prefix: str = "", change: Change | None = None
) -> Iterator[Session]:
    """One recording with one utterance for each row.

    Args:
        source: the corpus.
        files: parquet and metadata files of a split.
        columns: which columns hold what.
        prefix: of ids made of the position of a row, where there is no id column.
        change: gets each utterance and its row, and returns it changed, or None to leave the row out.

    Raises:
        CorpusError: a table lacks a column that is needed.
    """
    for path in files:
        rows = _parquet(source, path, columns) if path.suffix == ".parquet" else _table(source, path, columns)
        for number, (place, row) in enumerate(rows):
            audio = _audio(row[columns.audio], path)
            if audio is None:
                source.problems.add("missing_audio", place, f"the column {columns.audio} is empty")
                continue
            raw = str(row[columns.text] if row[columns.text] is not None else "")
            # Embedded audio often has the same path in every row, and files the same name in every folder.
            given = _value(row, columns.id) or (
                f"{prefix}{path.stem}-{number:06d}" if audio.content else _id_of(audio.path, source)
            )
            utterance = Utterance(
                id=given,
                place=place,
                text=" ".join(raw.split()),
                raw=raw,
                speaker=_value(row, columns.speaker),
                gender=_gender(_value(row, columns.gender)),
                language=_value(row, columns.language),
                custom={name: row[name] for name in columns.keep if row.get(name) not in (None, "")},
            )
            changed = change(utterance, row) if change else utterance
            if changed:
                yield single(audio, changed)


def _parquet(source: Source, path: Path, columns: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(f"{path}: reading parquet needs pyarrow; pip install pyarrow") from error
    try:
        file = parquet.ParquetFile(source.note(path))
    except (pyarrow.ArrowException, OSError) as error:
        if path.read_bytes()[:7] == b"version":
            raise CorpusError(f"{path}: a Git LFS pointer, not the data; run git lfs pull in its repository") from error
        raise CorpusError(f"{path}: cannot be read as parquet ({error})") from error
    names = file.schema_arrow.names
    require(names, [columns.audio, columns.text], str(path))
    used = [columns.id, columns.speaker, columns.gender, columns.language, *columns.keep]
    wanted = [name for name in dict.fromkeys([columns.audio, columns.text, *filter(None, used)]) if name in names]
    number = 0
    try:
        for batch in file.iter_batches(batch_size=_BATCH, columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(f"{path}, after row {number}: cannot be read as parquet ({error})") from error


def _table(source: Source, path: Path, columns: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
    # An audio folder names its files in file_name, whatever the column is called after loading.
    if path.suffix == ".jsonl":
        rows: Iterator[tuple[str, dict[str, Any]]] = source.json_lines(path)
    else:
        rows = source.rows(path, "," if path.suffix == ".csv" else "\t", quoted=path.suffix == ".csv")
    for number, (place, row) in enumerate(rows):
        if columns.audio not in row and "file_name" in row:
            row[columns.audio] = row["file_name"]
        missing = [name for name in (columns.audio, columns.text) if name not in row]
        if missing and number == 0 and path.suffix != ".jsonl":
            require(row, missing, str(path))
        if missing:
            source.problems.add("row", place, f"no {', '.join(missing)}; there are {', '.join(row)}")
            continue
        yield place, row


def _audio(value: Any, table: Path) -> Audio | None:
    if isinstance(value, dict):
        content, name = value.get("bytes"), value.get("path")
        if content:
            return Audio(Path(name or _name_of(content)), content)
        value = name
    if not value:
        return None
    path = Path(str(value))
    return Audio(path if path.is_absolute() else table.parent / path)


def _id_of(path: Path, source: Source) -> str:
    inside = path.relative_to(source.root) if path.is_relative_to(source.root) else Path(path.name)
    return "-".join(inside.with_suffix("").parts)


def _name_of(content: bytes) -> str:
    """A name with the suffix that the first bytes ask for."""
    for start, suffix in ((b"fLaC", ".flac"), (b"OggS", ".ogg"), (b"ID3", ".mp3"), (b"\xff\xfb", ".mp3")):
        if content.startswith(start):
            return f"audio{suffix}"
    return "audio.wav"


def _value(row: dict[str, Any], name: str | None) -> str | None:
    value = row.get(name) if name else None
    return None if value is None or value == "" else str(value)


def _gender(value: str | None) -> str | None:
    return {"m": "Male", "male": "Male", "f": "Female", "female": "Female"}.get((value or "").lower(), value)
