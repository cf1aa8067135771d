"""Transcriber ``.trs``: XML with turns, whose transcript is the text that follows each ``Sync``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element

from ..sessions import Audio, Headerless, Session, Utterance
from ..source import Source
from ._times import seconds, stamp
from ._xml import line_of, parse_xml

_AUDIO = (".wav", ".flac", ".sph", ".mp3", ".ogg", ".raw")
_INLINE = re.compile(r"\s*\[[^\]]*\]|\s*\^\^|\^(?=\w)|(?<=\w)-(?=\s|$)|\+(?=\w)")
_GENDERS = {"male": "Male", "female": "Female"}


def trs_sessions(
    source: Source,
    files: list[Path],
    audio_dir: Path | None = None,
    *,
    encoding: str | None = None,
    headerless: Headerless | None = None,
) -> Iterator[Session]:
    """Sessions of transcripts, one per file.

    A ``Sync`` without text is a pause. Sections of type ``nontrans`` are left out, and so are stretches where two
    people speak at once (turns with several speakers), whose text cannot be told apart by time.

    Args:
        source: the corpus.
        files: transcripts.
        audio_dir: folder of the audio, which has the name of the transcript or the one that it gives; the folder of the
            transcript when None.
        encoding: overrides the encoding that the files declare.
        headerless: how to read ``.raw`` audio.
    """
    for path in files:
        root = parse_xml(source, path, encoding)
        if root is None:
            continue
        if root.tag != "Trans":
            source.problems.add("row", f"{path}, line {line_of(root)}", f"<{root.tag}> is not Transcriber's <Trans>")
            continue
        audio = _audio(path, root, audio_dir or path.parent)
        utterances = list(_utterances(source, path, root))
        if utterances:
            raw = headerless if audio.suffix == ".raw" else None
            yield Session(path.stem, Audio(audio, headerless=raw), utterances)


def _audio(path: Path, root: Element, folder: Path) -> Path:
    names = [path.stem, Path(root.get("audio_filename") or path.stem).name]
    for name in names:
        for candidate in (folder / name, *(folder / f"{name}{suffix}" for suffix in _AUDIO)):
            if candidate.suffix.lower() in _AUDIO and candidate.is_file():
                return candidate
    return folder / f"{path.stem}.wav"


def _utterances(source: Source, path: Path, root: Element) -> Iterator[Utterance]:
    speakers = {node.get("id"): node for node in root.iter("Speaker")}
    for section in root.iter("Section"):
        if section.get("type") == "nontrans":
            continue
        for turn in section.iter("Turn"):
            place = f"{path}, line {line_of(turn)}"
            names = (turn.get("speaker") or "").split()
            if len(names) > 1:
                continue
            known = speakers.get(names[0]) if names else None
            if names and known is None:
                source.problems.add("row", place, f"the speaker {names[0]!r} is not in the list of speakers")
                continue
            for piece in _pieces(source, turn, path):
                text = clean(piece.raw)
                if not piece.raw.strip():
                    continue
                yield Utterance(
                    id=f"{path.stem}-{stamp(piece.start)}-{stamp(piece.end)}",
                    place=f"{path}, line {piece.line}",
                    text=text,
                    raw=" ".join(piece.raw.split()),
                    start=piece.start,
                    end=piece.end,
                    speaker=f"{path.stem}-{names[0]}" if names else None,
                    gender=_GENDERS.get(known.get("type", "")) if known is not None else None,
                    custom={
                        key: value
                        for key, value in (
                            ("speaker_name", known.get("name") if known is not None else None),
                            ("dialect", known.get("dialect") if known is not None else None),
                            ("mode", turn.get("mode")),
                            ("fidelity", turn.get("fidelity")),
                            ("channel", turn.get("channel")),
                        )
                        if value
                    },
                )


@dataclass
class _Piece:
    start: float
    line: int
    end: float = 0.0
    texts: list[str] = field(default_factory=list)

    @property
    def raw(self) -> str:
        return "".join(self.texts)


def _pieces(source: Source, turn: Element, path: Path) -> Iterator[_Piece]:
    """Stretches between ``Sync`` marks; events between them are left out, the text after an event is not."""
    place = f"{path}, line {line_of(turn)}"
    start, end = _seconds(turn.get("startTime")), _seconds(turn.get("endTime"))
    if start is None or end is None:
        source.problems.add("row", place, "the turn has no startTime and endTime in seconds")
        return
    pieces: list[_Piece] = []
    for node in turn:
        line = line_of(node)
        if node.tag == "Sync":
            time = _seconds(node.get("time"))
            if time is None:
                source.problems.add("row", f"{path}, line {line}", f"Sync time={node.get('time')!r} is not in seconds")
                return
            pieces.append(_Piece(time, line + 1 if (node.tail or "").startswith("\n") else line))
        if pieces and node.tail:
            pieces[-1].texts.append(node.tail if node.tag == "Sync" else f" {node.tail}")
    if not pieces:
        source.problems.add("row", place, "the turn has no Sync, so that its text has no time")
        return
    for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
        piece.end = following.start if following else end
    yield from pieces


def _seconds(text: str | None) -> float | None:
    try:
        return seconds(text) if text is not None else None
    except ValueError:
        return None


def clean(text: str) -> str:
    """A transcript without Transcriber's marks: bracketed noises, ``^`` before names, hyphens of broken-off words.

    Example:
        >>> clean("o ^João [riso] foi à esc-  +lha")
        'o João foi à esc lha'
    """
    return " ".join(_INLINE.sub("", text).split())
