"""SEAME's transcripts: lines of recording, start and end in milliseconds, language (phase II only) and text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..languages import HAN, LATIN, spans_by_script
from ..sessions import Audio, Session, Utterance
from ..source import Source
from ._times import seconds, stamp

_MARKS = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\([^()]*\)")
_SPEAKER = re.compile(r"(?:\d\d)?([A-Z]{2}\d\d[MF])", re.IGNORECASE)
_LANGUAGES = {"EN": "en", "ZH": "zh", "CS": "zh-en"}


def seame_sessions(source: Source, files: list[Path], audio_dirs: list[Path]) -> Iterator[Session]:
    """Sessions of transcripts, one per recording.

    Args:
        source: the corpus.
        files: transcripts, of phase I (four columns) or phase II (five).
        audio_dirs: folders where ``<recording>.flac`` or ``.wav`` may be.
    """
    for path in files:
        by_recording: dict[str, list[Utterance]] = {}
        for place, line in source.lines(path):
            if not line.strip():
                continue
            cells = line.split("\t") if "\t" in line else line.split(None, 4)
            if len(cells) < 4:
                source.problems.add(
                    "row", place, f"{len(cells)} columns; SEAME has recording, start, end, [language], text"
                )
                continue
            recording, start, end = cells[0].strip(), cells[1], cells[2]
            language = cells[3].strip() if len(cells) > 4 else ""
            raw = " ".join(cells[-1].split()) if len(cells) > 4 or cells[3] not in _LANGUAGES else ""
            try:
                begins, ends = seconds(start, 1000), seconds(end, 1000)
            except ValueError:
                source.problems.add("row", place, f"start {start!r} and end {end!r} are not milliseconds")
                continue
            if language and language not in _LANGUAGES:
                source.problems.add("row", place, f"the language {language!r} is none of {', '.join(_LANGUAGES)}")
                continue
            text = " ".join(_MARKS.sub(" ", raw).split())
            by_recording.setdefault(recording, []).append(
                Utterance(
                    id=f"{recording}-{stamp(begins)}-{stamp(ends)}",
                    place=place,
                    text=text,
                    raw=raw,
                    start=begins,
                    end=ends,
                    speaker=speaker_of(recording),
                    language=_LANGUAGES.get(language),
                    spans=spans_by_script(text, {HAN: "zh", LATIN: "en"}),
                )
            )
        for recording, utterances in by_recording.items():
            choices = [folder / f"{recording}{suffix}" for folder in audio_dirs for suffix in (".flac", ".wav")]
            audio = next((choice for choice in choices if choice.is_file()), choices[0])
            yield Session(recording, Audio(audio), utterances)


def speaker_of(recording: str) -> str:
    """The speaker's part of a recording's name: place and kind, number and sex.

    Interviews are called ``NI01MAX_0101``; conversations have their number first, ``01NC01FBX_0101``, and one person
    takes part in several.

    Example:
        >>> speaker_of("NI01MAX_0101"), speaker_of("23NC35FBQ_0101"), speaker_of("24NC35FBQ_0101")
        ('NI01M', 'NC35F', 'NC35F')
    """
    match = _SPEAKER.match(recording)
    return match[1].upper() if match else recording
