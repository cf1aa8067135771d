"""Opens a transcript file: finds its format, decodes its lines, and notes what cannot be used."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from ...errors import ConfigError, TranscriptError, did_you_mean
from . import formats
from .problems import Problems
from .utterance import Utterance

FORMATS: dict[str, Callable[[Iterable[formats.Line], formats.Bad], Iterator[Utterance]]] = {
    "json": formats.read_json_lines,
    "csv": partial(formats.read_table, delimiter=","),
    "tsv": partial(formats.read_table, delimiter="\t"),
    "kaldi": formats.read_kaldi,
    "trn": formats.read_trn,
    "ctm": formats.read_ctm,
}
SUFFIXES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "tsv", ".trn": "trn", ".ctm": "ctm"}


def read_transcripts(
    path: str | Path, problems: Problems, *, encoding: str = "utf-8", format: str | None = None
) -> dict[str, Utterance]:
    """Utterances of a file by id, in the order of the file.

    Args:
        path: NeMo manifest, hypotheses of a recipe or Lhotse supervisions (``.json``, ``.jsonl``), table with a header
            (``.csv``, ``.tsv``), ``.trn``, ``.ctm``, or Kaldi ``text`` (anything else); also with ``.gz``.
        problems: where rows that cannot be used are noted; they are left out. Of several rows with one id the first
            stays.
        encoding: of the file; a byte order mark is fine.
        format: one of :data:`FORMATS` if the name does not tell.

    Raises:
        TranscriptError: the file is missing, cannot be read or has no usable row.
        ConfigError: an unknown format or encoding.
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise ConfigError(f"there is no transcript format {format!r}{did_you_mean(format, FORMATS)}")
    before = len(problems.found)
    lines = _lines(path, encoding, problems)
    utterances: dict[str, Utterance] = {}
    for utterance in FORMATS[format or _format_of(path, lines)](
        lines, lambda line, message: problems.add("unreadable row", path, line, message)
    ):
        if first := utterances.get(utterance.id):
            message = f"{utterance.id} is there already, in line {first.line}, which is used"
            problems.add("duplicate id", path, utterance.line, message)
        else:
            utterances[utterance.id] = utterance
    if not utterances:
        detail = f"; {problems.found[before]}" if len(problems.found) > before else ""
        raise TranscriptError(f"{path}: no utterances found{detail}")
    return utterances


def read_labels(path: str | Path, problems: Problems, *, encoding: str = "utf-8") -> dict[str, str]:
    """Labels by utterance: Kaldi's ``utt2spk``, ``utt2lang`` and the like, an id and a label in every line.

    Raises:
        TranscriptError: the file is missing, cannot be read or is empty.
    """
    labelled = read_transcripts(path, problems, encoding=encoding, format="kaldi")
    return {name: utterance.text or "" for name, utterance in labelled.items()}


def _format_of(path: Path, lines: list[formats.Line]) -> str:
    name = path.with_suffix("") if path.suffix == ".gz" else path
    if known := SUFFIXES.get(name.suffix.lower()):
        return known
    return "json" if lines and lines[0][1].lstrip().startswith("{") else "kaldi"


def _lines(path: Path, encoding: str, problems: Problems) -> list[formats.Line]:
    """Lines that are not blank, with their numbers; lines of another encoding are problems."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise TranscriptError(f"{path}: cannot be read ({reason})") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise TranscriptError(f"{path}: is UTF-16; convert it first: iconv -f UTF-16 -t UTF-8")
    lines = []
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            line = raw.decode(encoding)
        except LookupError as error:
            raise ConfigError(f"there is no encoding {encoding!r}") from error
        except UnicodeDecodeError as error:
            message = f"not {encoding}, at byte {error.start + 1} of the line; --encoding says what it is"
            problems.add("wrong encoding", path, number, message)
            continue
        if line.strip():
            lines.append((number, line.rstrip("\r")))
    return lines
