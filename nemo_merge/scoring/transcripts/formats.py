"""Reads utterances of one format each: JSON lines, tables, Kaldi text, trn, CTM."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .utterance import Utterance

Line = tuple[int, str]
Bad = Callable[[int, str], None]
"""Reports a line that cannot be used, with what is wrong with it."""

# Names that manifests and tables give to the same thing; the first that is there wins.
_ID = ("id", "ID", "utt_id", "utterance_id", "uttid", "utt")
_PATH = ("audio_filepath", "audio", "path", "file_name", "file_path", "wav")
_TEXT = ("text", "reference", "transcription", "transcript", "sentence")
_HEARD = ("pred_text", "hypothesis", "prediction", "pred")
_LANGUAGE = ("lang", "language", "locale", "source_lang")
_DOMAIN = ("domain", "dataset", "corpus")
_SPEAKER = ("speaker", "speaker_id", "client_id")


def read_json_lines(lines: Iterable[Line], bad: Bad) -> Iterator[Utterance]:
    """NeMo manifests, Lhotse supervisions, and the hypotheses of this project's recipes: one JSON object a line."""
    for number, line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            bad(number, f"not JSON ({error})")
            continue
        if not isinstance(row, dict):
            bad(number, "not a JSON object")
        elif utterance := _from_fields(row, number, bad):
            yield utterance


def read_table(lines: Iterable[Line], bad: Bad, delimiter: str) -> Iterator[Utterance]:
    """CSV with quotes, or TSV without (as Common Voice writes it); the first line names the columns."""
    number = 0

    def texts() -> Iterator[str]:
        nonlocal number
        for at, line in lines:
            number = at
            yield line

    rows = csv.reader(texts(), delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE)
    header: list[str] = []
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            bad(number, str(error))
            continue
        if not header:
            header = [name.strip() for name in row]
            if not {*header} & {*_ID, *_PATH} or not {*header} & {*_TEXT, *_HEARD}:
                columns = f"ids ({_ID[0]}, {_PATH[0]} ...) or texts ({_TEXT[0]}, {_HEARD[0]} ...)"
                bad(number, f"the header names no column for {columns}")
                return
        elif len(row) != len(header):
            bad(number, f"{len(row)} columns where the header has {len(header)}")
        elif utterance := _from_fields(dict(zip(header, row, strict=True)), number, bad):
            yield utterance


def read_kaldi(lines: Iterable[Line], bad: Bad) -> Iterator[Utterance]:
    """Kaldi and ESPnet ``text``: an id, white space, the words; the id alone is an utterance without words."""
    for number, line in lines:
        name, *rest = line.split(maxsplit=1)
        yield Utterance(name, number, rest[0] if rest else "")


def read_trn(lines: Iterable[Line], bad: Bad) -> Iterator[Utterance]:
    """``trn`` of the NIST Scoring Toolkit: the words, then the id in parentheses."""
    for number, line in lines:
        match = re.fullmatch(r"(.*?)\(([^()\s]+)\)\s*", line)
        if match is None:
            bad(number, "no (utterance-id) at the end of the line")
        else:
            yield Utterance(match[2], number, match[1])


def read_ctm(lines: Iterable[Line], bad: Bad) -> Iterator[Utterance]:
    """CTM: file, channel, start, duration and word in every line; the words of one file and channel are an utterance.

    Ids are those of the files, or ``file-channel`` where a file has several channels.
    """
    found: dict[tuple[str, str], list[tuple[float, int, str]]] = {}
    for number, line in lines:
        if line.lstrip().startswith((";;", "#")):
            continue
        fields = line.split()
        if len(fields) < 5:
            bad(number, f"{len(fields)} fields, but a line of CTM has 5 at least: file channel start duration word")
            continue
        try:
            start = float(fields[2])
        except ValueError:
            bad(number, f"the start {fields[2]!r} is not a number of seconds; alternatives are not supported")
            continue
        found.setdefault((fields[0], fields[1]), []).append((start, number, fields[4]))
    channels = Counter(name for name, _ in found)
    for (name, channel), spoken in found.items():
        text = " ".join(word for _, _, word in sorted(spoken))
        yield Utterance(name if channels[name] == 1 else f"{name}-{channel}", spoken[0][1], text)


def _from_fields(row: Mapping[str, Any], number: int, bad: Bad) -> Utterance | None:
    name, from_path = _first(row, _ID), False
    if name is None and (name := _first(row, _PATH)) is not None:
        from_path = True
        if offset := row.get("offset"):  # utterances of one recording differ in their offsets
            name = f"{name}@{offset}"
    if not isinstance(name, str | int) or name == "":
        bad(number, f"no id ({_ID[0]}, {_PATH[0]} ...)")
        return None
    text, heard = _first(row, _TEXT), _first(row, _HEARD)
    for value in (text, heard):
        if value is not None and not isinstance(value, str):
            bad(number, f"the text of {name} is {type(value).__name__}, not a string")
            return None
    if text is None and heard is None:
        bad(number, f"{name} has no text ({_TEXT[0]}, {_HEARD[0]} ...)")
        return None
    language, domain, speaker = (
        None if value in (None, "") else str(value)
        for value in (_first(row, names) for names in (_LANGUAGE, _DOMAIN, _SPEAKER))
    )
    return Utterance(str(name), number, text, heard, language, domain, speaker, from_path)


def _first(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)
