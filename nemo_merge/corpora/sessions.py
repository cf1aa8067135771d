"""What every importer yields: recordings with their utterances, before anything is known of the audio."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Span = tuple[str, int, int]
"""BCP-47 tag, start and end as character offsets into a text."""


@dataclass(frozen=True)
class Headerless:
    """How to read audio without a header.

    Attributes:
        rate: sampling rate, Hz.
        channels: interleaved channels.
        subtype: libsndfile's name of the encoding: ``PCM_16``, ``ALAW``, ``ULAW`` ...
        endian: ``LITTLE`` or ``BIG``.
    """

    rate: int = 16000
    channels: int = 1
    subtype: str = "PCM_16"
    endian: str = "LITTLE"


@dataclass(frozen=True)
class Audio:
    """Where the samples of a recording are: a file, or the bytes of a file that is part of a table.

    Attributes:
        path: the file; of embedded audio its name, for the suffix.
        content: bytes of the file when they are embedded.
        headerless: set for audio without a header; a path that ends in ``.gz`` is decompressed first.
    """

    path: Path
    content: bytes | None = None
    headerless: Headerless | None = None


@dataclass
class Utterance:
    """A stretch of speech and what was said.

    Attributes:
        id: unique in the corpus.
        place: file and line it was read from, for messages.
        text: the transcript without markup.
        raw: the transcript as the corpus has it; ``text`` when None.
        start, end: seconds from the beginning of the recording; an end of None is the end of the recording.
        language: BCP-47 tag; the corpus's own when None.
        spans: parts of ``text`` by language; empty when the corpus does not say.
        channel: of the recording.
        custom: anything else worth keeping, as plain data.
    """

    id: str
    place: str
    text: str
    raw: str | None = None
    start: float = 0.0
    end: float | None = None
    speaker: str | None = None
    gender: str | None = None
    language: str | None = None
    spans: tuple[Span, ...] = ()
    channel: int = 0
    custom: dict[str, Any] = field(default_factory=dict)


@dataclass
class Session:
    """One recording and its utterances in the order of their start."""

    id: str
    audio: Audio
    utterances: list[Utterance]


Splits = Mapping[str, Iterable[Session]]
"""Sessions by split; iterables are read once, and not at all for splits that are done."""


@dataclass
class Layout:
    """What a recipe found in a corpus folder, and what it is when that depends on options.

    Attributes:
        splits: sessions by split.
        stem: first part of the names of the manifests; the corpus's own when None.
        domain, languages, variety, licence: likewise in place of what the registry says.
    """

    splits: Splits
    stem: str | None = None
    domain: str | None = None
    languages: tuple[str, ...] | None = None
    variety: str | None = None
    licence: str | None = None


def single(audio: Audio, utterance: Utterance) -> Session:
    """A recording that holds one utterance and has its name."""
    return Session(utterance.id, audio, [utterance])
