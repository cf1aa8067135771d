"""WebVTT subtitles: cues of two times and lines of text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..sessions import Utterance
from ..source import Source

_TIMES = re.compile(r"^\s*((?:\d{1,3}:)?\d{1,3}:\d{1,3}[.,]\d{1,6})\s+-->\s+((?:\d{1,3}:)?\d{1,3}:\d{1,3}[.,]\d{1,6})")
_NOISE = re.compile(r"\([^)]*\)|<[^>]*>|&[^ ;]*;|[♪♫]")


def vtt_utterances(source: Source, path: Path, recording: str) -> Iterator[Utterance]:
    """The cues of a file; noises in round brackets are taken out of the text and stay in the raw one.

    Args:
        source: the corpus.
        path: the subtitles.
        recording: id of the recording, which is also the speaker.
    """
    cue: tuple[str, float, float] | None = None
    lines: list[str] = []

    def finished() -> Iterator[Utterance]:
        if cue is None:
            return
        place, start, end = cue
        raw = " ".join(" ".join(lines).split())
        text = " ".join(_NOISE.sub(" ", raw).split()).removeprefix("- ")
        yield Utterance(f"{recording}_{int(start * 100):08d}", place, text, raw, start, end, speaker=recording)

    for place, line in source.lines(path):
        if "-->" in line:
            yield from finished()
            lines = []
            match = _TIMES.match(line)
            if match is None:
                source.problems.add("row", place, f"{line.strip()!r} are not two times of WebVTT")
            cue = (place, _time(match[1]), _time(match[2])) if match else None
        elif line.strip():
            lines.append(line.strip())
        else:
            yield from finished()
            cue, lines = None, []
    yield from finished()


def _time(text: str) -> float:
    time = 0.0
    for part in text.replace(",", ".").split(":"):
        time = 60 * time + float(part)
    return round(time, 3)
