"""The audio of a session as a Lhotse recording; what Lhotse cannot read in place is written as FLAC first."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from .sessions import Audio, Headerless

if TYPE_CHECKING:
    from lhotse import Recording

OPUS_RATE = 16000  # Hz; Opus has no rate of its own, and speech corpora in it were made from 16 kHz
_UNSAFE = re.compile(r"[^\w.-]+")


class UnreadableAudioError(Exception):
    """Why a recording cannot be used; ``kind`` is that of the problem."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def open_recording(audio: Audio, recording_id: str, folder: Path | None) -> Recording:
    """Reads the header of a recording.

    Args:
        audio: where it is.
        recording_id: id of the recording.
        folder: where embedded, headerless or compressed audio is written to as a file of its own; in memory when None.

    Raises:
        UnreadableAudioError: the file is missing, empty or of no format that can be read.
    """
    if audio.content is None and not audio.path.is_file():
        raise UnreadableAudioError("missing_audio", f"{audio.path} does not exist")
    try:
        if audio.content is not None:
            return _stored(audio.content, audio.path.suffix, recording_id, folder)
        if audio.headerless or audio.path.suffix == ".gz":
            return _stored(_converted(audio), ".flac", recording_id, folder)
        return _in_place(audio, recording_id, folder)
    except UnreadableAudioError:
        raise
    except Exception as error:  # each of Lhotse's backends raises its own
        message = f"{audio.path} cannot be read as audio ({_reason(error)})"
        raise UnreadableAudioError("unreadable_audio", message) from error


def _reason(error: Exception) -> str:
    """What the first of Lhotse's backends said, without the names of classes around it."""
    text = str(error).partition("Details:")[2].strip() or str(error).strip() or type(error).__name__
    return text.splitlines()[0].rpartition("'>: ")[2].rstrip(".")


def _in_place(audio: Audio, recording_id: str, folder: Path | None) -> Recording:
    try:
        return _checked(_recording(audio.path, recording_id))
    except Exception:
        if audio.path.suffix.lower() != ".sph":
            raise
        try:  # Lhotse needs sph2pipe, libsndfile reads SPHERE files that are not compressed with shorten
            content = _converted(audio)
        except Exception:
            raise ValueError("SPHERE audio compressed with shorten needs sph2pipe: lhotse install-sph2pipe") from None
        return _stored(content, ".flac", recording_id, folder)


def _recording(path: Path, recording_id: str) -> Recording:
    from lhotse import Recording

    rate = OPUS_RATE if path.suffix.lower() == ".opus" else None
    return Recording.from_file(path.resolve(), recording_id=recording_id, force_opus_sampling_rate=rate)


def _checked(recording: Recording) -> Recording:
    if recording.num_samples <= 0:
        raise UnreadableAudioError("unreadable_audio", f"{recording.sources[0].source} holds no samples")
    return recording


def _stored(content: bytes, suffix: str, recording_id: str, folder: Path | None) -> Recording:
    from lhotse import Recording

    if folder is None:
        return _checked(Recording.from_bytes(content, recording_id))
    # Ids that differ only in characters that file names cannot have must not meet.
    name = _UNSAFE.sub("_", recording_id)[:120]
    if name != recording_id:
        name += "-" + hashlib.sha256(recording_id.encode()).hexdigest()[:8]
    path = folder / f"{name}{suffix}"
    if not path.is_file() or path.stat().st_size != len(content):
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(content)
        os.replace(partial, path)
    return _checked(_recording(path, recording_id))


def _converted(audio: Audio) -> bytes:
    """FLAC with the samples of a headerless or compressed file."""
    import soundfile

    content = audio.path.read_bytes()
    if audio.path.suffix == ".gz":
        content = gzip.decompress(content)
    if audio.headerless is None:
        samples, rate = soundfile.read(io.BytesIO(content), dtype="int16", always_2d=True)
    else:
        layout: Headerless = audio.headerless
        if len(content) % layout.channels:
            raise ValueError(f"{len(content)} bytes do not divide into {layout.channels} channels")
        samples, rate = soundfile.read(
            io.BytesIO(content),
            dtype="int16",
            always_2d=True,
            format="RAW",
            samplerate=layout.rate,
            channels=layout.channels,
            subtype=layout.subtype,
            endian=layout.endian,
        )
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format="FLAC", subtype="PCM_16")
    return stream.getvalue()
