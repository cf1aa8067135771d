"""Finds the audio of utterances and makes it small enough to be part of a page."""

from __future__ import annotations

import base64
import gzip
import io
import json
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import AudioError

_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")
_MANIFESTS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


@dataclass(frozen=True)
class Source:
    """Where the audio of an utterance is.

    Attributes:
        path: audio file.
        start: seconds from its beginning.
        duration: seconds; ``None`` for the rest of the file.
        channel: of several; ``None`` for their mean.
        language: BCP-47 tag, if the manifest says so.
    """

    path: Path
    start: float = 0.0
    duration: float | None = None
    channel: int | None = None
    language: str | None = None


@dataclass(frozen=True)
class Clip:
    """Audio as part of a page: a data address, and how long it is in seconds; or why there is none."""

    address: str = ""
    seconds: float = 0.0
    problem: str = ""


def find_audio(places: Iterable[Path], wanted: Collection[str]) -> dict[str, Source]:
    """Looks utterances up by id in NeMo manifests, Lhotse cuts and folders of files named by id.

    Args:
        places: what to search; the first that knows an utterance counts.
        wanted: ids.

    Raises:
        AudioError: a place is missing, or a manifest is damaged; with file and line.
    """
    found: dict[str, Source] = {}
    for place in places:
        sources = _in_folder(place, wanted) if place.is_dir() else _in_manifest(place, wanted)
        found = {**sources, **found}
    return found


def is_manifest(path: Path) -> bool:
    """Whether a file may be a manifest, by its name."""
    return path.name.lower().endswith(_MANIFESTS)


class Clips:
    """Encodes clips as FLAC, which all browsers play, until they are too much together.

    Args:
        limit: bytes of audio in the page.
    """

    def __init__(self, limit: int) -> None:
        self.left = limit

    def get(self, source: Source | None) -> Clip:
        """The clip of an utterance; audio that cannot be read is no reason to have no report."""
        if source is None:
            return Clip(problem="no audio at hand")
        try:
            import soundfile
        except ImportError:
            return Clip(problem="no audio: soundfile is not installed")
        try:
            content, seconds = _encode(soundfile, source, self.left)
        except (OSError, RuntimeError, ValueError) as error:  # soundfile's own errors are RuntimeErrors
            return Clip(problem=f"the audio cannot be read ({error})")
        if len(content) > self.left or not content:
            return Clip(problem="no audio: the page has as much of it as --audio-limit allows")
        self.left -= len(content)
        return Clip("data:audio/flac;base64," + base64.b64encode(content).decode(), seconds)


def _encode(soundfile: Any, source: Source, limit: int) -> tuple[bytes, float]:
    """16-bit FLAC of one channel and its seconds; empty if it cannot fit into the limit."""
    rate = soundfile.info(str(source.path)).samplerate
    frames = -1 if source.duration is None else round(source.duration * rate)
    length = soundfile.info(str(source.path)).frames - round(source.start * rate) if frames < 0 else frames
    if length > 4 * limit:  # even speech with long pauses takes a quarter of a byte and more for every sample
        return b"", 0.0
    audio, _ = soundfile.read(str(source.path), frames, round(source.start * rate), dtype="float32", always_2d=True)
    mono = audio.mean(axis=1) if source.channel is None else audio[:, min(source.channel, audio.shape[1] - 1)]
    content = io.BytesIO()
    soundfile.write(content, mono.clip(-1, 1), rate, format="FLAC", subtype="PCM_16")
    return content.getvalue(), len(mono) / rate


def _in_folder(folder: Path, wanted: Collection[str]) -> dict[str, Source]:
    found = {}
    for name in wanted:
        # An id is data: it must not lead out of the folder.
        stem = Path(name).name
        for suffix in ("", *_SUFFIXES):
            path = folder / f"{stem}{suffix}"
            if path.suffix.lower() in _SUFFIXES and path.is_file():
                found[name] = Source(path)
                break
    return found


def _in_manifest(path: Path, wanted: Collection[str]) -> dict[str, Source]:
    try:
        content = path.read_bytes()
        lines = (gzip.decompress(content) if path.suffix == ".gz" else content).decode().split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise AudioError(f"{path}: cannot be read ({error})") from error
    found: dict[str, Source] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            found |= {name: source for name, source in _sources(entry, path.parent).items() if name in wanted}
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise AudioError(f"{path}:{number}: neither a line of a NeMo manifest nor a cut ({error!r})") from error
    return found


def _sources(entry: Mapping[str, Any], folder: Path) -> dict[str, Source]:
    """Audio of one line, by the ids under which transcripts may have it."""
    if "recording" in entry:
        return _of_cut(entry, folder)
    name = entry.get("audio_filepath")
    if not name:
        return {}
    offset, duration, language = entry.get("offset"), entry.get("duration"), entry.get("lang") or entry.get("language")
    source = Source(
        _resolved(name, folder),
        float(offset or 0),
        None if duration is None else float(duration),
        language=None if language is None else str(language),
    )
    return {str(key): source for key in (f"{name}@{offset}" if offset else name, entry.get("id")) if key is not None}


def _of_cut(cut: Mapping[str, Any], folder: Path) -> dict[str, Source]:
    """Audio of a cut and of each of its supervisions, which begin after it does."""
    path = _resolved(cut["recording"]["sources"][0]["source"], folder)
    start, channel = float(cut["start"]), cut.get("channel")
    channel = channel if isinstance(channel, int) else None
    found = {str(cut["id"]): Source(path, start, float(cut["duration"]), channel)}
    for spoken in cut.get("supervisions") or ():
        begins, lasts, language = float(spoken["start"]), float(spoken["duration"]), spoken.get("language")
        language = None if language is None else str(language)
        found[str(spoken["id"])] = Source(path, max(start + begins, 0.0), lasts, channel, language)
    return found


def _resolved(name: str, folder: Path) -> Path:
    """A path as it is, as Lhotse takes it, or from the folder of the manifest, as NeMo does."""
    return path if (path := Path(name)).is_file() else folder / name
