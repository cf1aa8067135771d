"""LDC ``.tdf``: tab-separated segments with channel and times, after three lines of header."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ..sessions import Audio, Session, Span, Utterance
from ..source import Source
from ._times import seconds, stamp

_FILE, _CHANNEL, _START, _END, _SPEAKER, _SEX, _TEXT = 0, 1, 2, 3, 4, 5, 7


def tdf_sessions(
    source: Source,
    files: list[Path],
    audio: Callable[[str], Path],
    text: Callable[[str, str], tuple[str, tuple[Span, ...]]],
    speaker: Callable[[str, int, str], str] = lambda file, channel, name: f"{file}-{channel}-{name}",
) -> Iterator[Session]:
    """Sessions of transcripts, one per file; lines that begin with ``;;`` and the header are no segments.

    Args:
        source: the corpus.
        files: transcripts.
        audio: the audio of a transcript, by the transcript's name without suffix.
        text: makes text and language spans of a place and a transcript; what it raises as ValueError is a problem.
        speaker: makes an id of file, channel and the speaker's name in the file.
    """
    for path in files:
        utterances = []
        for number, (place, line) in enumerate(source.lines(path)):
            if not line.strip() or line.startswith(";;") or (number == 0 and line.startswith("file")):
                continue
            cells = line.split("\t")
            try:
                channel, start, end = int(cells[_CHANNEL]), seconds(cells[_START]), seconds(cells[_END])
                raw = " ".join(cells[_TEXT].split())
                words, spans = text(place, raw)
            except IndexError:
                source.problems.add("row", place, f"{len(cells)} cells; a segment of a .tdf file has at least 8")
                continue
            except ValueError as error:
                source.problems.add("row", place, str(error))
                continue
            utterances.append(
                Utterance(
                    id=f"{path.stem}-{channel}-{stamp(start)}-{stamp(end)}",
                    place=place,
                    text=words,
                    raw=raw,
                    start=start,
                    end=end,
                    speaker=speaker(path.stem, channel, cells[_SPEAKER]),
                    gender={"male": "Male", "female": "Female"}.get(cells[_SEX].lower()),
                    spans=spans,
                    channel=channel,
                )
            )
        if utterances:
            yield Session(path.stem, Audio(audio(path.stem)), utterances)
