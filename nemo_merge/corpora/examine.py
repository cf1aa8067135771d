"""From a session to the rows of its manifests: reads the audio's header, checks, and lets Lhotse validate."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .audio import UnreadableAudioError, open_recording
from .checks import usable
from .languages import language_tag
from .problems import Problem
from .sessions import Session, Utterance


@dataclass(frozen=True)
class Identity:
    """What every supervision of a corpus says of it."""

    stem: str
    corpus: str
    domain: str
    languages: tuple[str, ...]
    variety: str
    licence: str


@dataclass(frozen=True)
class Row:
    """What became of a session, as plain data.

    Attributes:
        recording: Lhotse's recording, or None when the audio is unusable or nothing is left of the session.
        supervisions: Lhotse's supervisions.
        problems: what was left out.
    """

    recording: dict[str, Any] | None
    supervisions: list[dict[str, Any]]
    problems: list[Problem]


def examine(session: Session, identity: Identity, audio_folder: Path | None) -> Row:
    """Makes the rows of one session; runs in any thread."""
    from lhotse import RecordingSet, SupervisionSegment, SupervisionSet, validate_recordings_and_supervisions

    try:
        recording = open_recording(session.audio, session.id, audio_folder)
    except UnreadableAudioError as error:
        return Row(None, [], [Problem(error.kind, u.place, str(error)) for u in session.utterances])
    kept, problems = usable(session.utterances, recording.duration, recording.channel_ids)
    if not kept:
        return Row(None, [], problems)
    segments = [
        SupervisionSegment(
            id=item.id,
            recording_id=recording.id,
            start=round(item.start, 8),
            duration=round((recording.duration if item.end is None else item.end) - item.start, 8),
            channel=item.channel,
            text=item.text,
            language=item.language or language_tag(identity.languages[0], item.spans),
            speaker=item.speaker,
            gender=item.gender,
            custom=_custom(item, identity),
        )
        for item in kept
    ]
    validate_recordings_and_supervisions(
        RecordingSet.from_recordings([recording]), SupervisionSet.from_segments(segments)
    )
    return Row(recording.to_dict(), [segment.to_dict() for segment in segments], problems)


def in_order(
    sessions: Iterable[Session], known: Callable[[Session], Row | None], work: Callable[[Session], Row], jobs: int
) -> Iterator[tuple[Session, Row]]:
    """Sessions with their rows in their own order; ``jobs`` threads work ahead, a bounded number of sessions.

    Args:
        sessions: read in this thread.
        known: the row of a session that need not be examined again.
        work: examines a session.
        jobs: threads.
    """
    pending: deque[tuple[Session, Row | Future[Row]]] = deque()

    def oldest() -> tuple[Session, Row]:
        session, made = pending.popleft()
        return session, made if isinstance(made, Row) else made.result()

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for session in sessions:
                row = known(session)
                pending.append((session, row if row is not None else pool.submit(work, session)))
                if len(pending) > 4 * jobs:
                    yield oldest()
            while pending:
                yield oldest()
        finally:
            for _, unfinished in pending:
                if isinstance(unfinished, Future):
                    unfinished.cancel()


def _custom(item: Utterance, identity: Identity) -> dict[str, Any]:
    custom = {
        "corpus": identity.corpus,
        "domain": identity.domain,
        "variety": identity.variety,
        "licence": identity.licence,
        "orig_text": item.text if item.raw is None else item.raw,
        "language_spans": [list(span) for span in item.spans],
    }
    return {**item.custom, **custom}
