"""Reads test sets: files, or folders with one file per set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...errors import ConfigError, TranscriptError
from .matching import Missing, Row, match
from .problems import Problems
from .reading import SUFFIXES, read_labels, read_transcripts


@dataclass(frozen=True)
class ReadingOptions:
    """How transcripts are read.

    Attributes:
        encoding: of all files.
        format: of all files, if their names do not tell.
        missing: what a reference without a hypothesis counts as.
        keep_empty: score empty references.
        language: of utterances whose language is not given otherwise.
        labels: Kaldi's ``utt2lang``, ``utt2domain`` and ``utt2spk`` by ``language``, ``domain`` and ``speaker``; they
            overrule the transcripts.
    """

    encoding: str = "utf-8"
    format: str | None = None
    missing: Missing = "delete"
    keep_empty: bool = False
    language: str | None = None
    labels: Mapping[str, Path] = field(default_factory=dict)


def read_rows(
    reference: Path, hypotheses: Mapping[str, Path], problems: Problems, options: ReadingOptions
) -> list[Row]:
    """Rows of one test set, or of several if the paths are folders with one file per set.

    Args:
        reference: a file, or a folder. Without hypotheses its own ``pred_text`` is scored.
        hypotheses: files, or folders with files of the same names, by system.
        problems: where what cannot be used is noted.
        options: how to read.

    Raises:
        TranscriptError: a file is missing or cannot be read, or nothing fits together.
        ConfigError: files and folders are mixed, or an option is wrong.
    """
    sets = _files(reference)
    rows: list[Row] = []
    for name, path in sets.items():
        files = {system: _file_of(name, folder, reference) for system, folder in hypotheses.items()}
        said = read_transcripts(path, problems, encoding=options.encoding, format=options.format)
        heard = {
            system: (file, read_transcripts(file, problems, encoding=options.encoding, format=options.format))
            for system, file in files.items()
        }
        if not heard:
            if all(utterance.heard is None for utterance in said.values()):
                raise TranscriptError(
                    f"{path}: has no pred_text, so there is nothing to score; give hypotheses as well"
                )
            heard = {system_names([reference])[0]: (path, said)}
        rows += match(name, (path, said), heard, problems, missing=options.missing, keep_empty=options.keep_empty)
    return _labelled(rows, problems, options)


def system_names(paths: Sequence[Path]) -> list[str]:
    """Short names that tell files or folders apart: their own, else those of their folders, else the whole paths.

    Example:
        >>> system_names([Path("exp/ties/test.jsonl"), Path("exp/tsvm/test.jsonl")])
        ['ties', 'tsvm']
    """
    candidates = [
        [path.name if path.is_dir() else _stem(path) for path in paths],
        [path.resolve().parent.name for path in paths],
        [str(path) for path in paths],
    ]
    return next((names for names in candidates if len({*names}) == len(names) and all(names)), candidates[-1])


def _files(path: Path) -> dict[str, Path]:
    """Files by set; the only set of a file has the name of the file."""
    if not path.is_dir():
        return {_stem(path): path}
    files = {_stem(file): file for file in sorted(path.iterdir()) if file.is_file() and _known(file)}
    if not files:
        raise TranscriptError(f"{path}: holds no transcripts ({', '.join(SUFFIXES)} or text)")
    return files


def _file_of(name: str, path: Path, reference: Path) -> Path:
    if reference.is_dir() != path.is_dir():
        raise ConfigError(f"{reference} and {path}: give two files, or two folders with one file per test set")
    if not path.is_dir():
        return path
    files = _files(path)
    if name not in files:
        raise TranscriptError(f"{path}: has no transcripts of the test set {name!r}, as {reference} does")
    return files[name]


def _known(file: Path) -> bool:
    suffix = Path(file.name.removesuffix(".gz")).suffix.lower()
    return not file.name.startswith(".") and (suffix in SUFFIXES or suffix in ("", ".txt"))


def _stem(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).stem


def _labelled(rows: Sequence[Row], problems: Problems, options: ReadingOptions) -> list[Row]:
    found = list(rows)
    for field_name, path in options.labels.items():
        labels = read_labels(path, problems, encoding=options.encoding)
        if not any(row.id in labels for row in found):
            raise TranscriptError(f"{path}: names no utterance of the references")
        found = [replace(row, **{field_name: labels.get(row.id, getattr(row, field_name))}) for row in found]
    if options.language:
        found = [row if row.language else replace(row, language=options.language) for row in found]
    return found
