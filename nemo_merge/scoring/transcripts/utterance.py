"""One transcribed utterance."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Utterance:
    """What a transcript file says about an utterance.

    Attributes:
        id: of the utterance; unique in its file.
        line: of the file, from 1.
        text: what was said, or ``None`` if the file does not say.
        heard: what was recognised, or ``None`` if the file does not say.
        language, domain, speaker: if the file says so.
        from_path: whether the id is the path of an audio file.
    """

    id: str
    line: int
    text: str | None = None
    heard: str | None = None
    language: str | None = None
    domain: str | None = None
    speaker: str | None = None
    from_path: bool = False
