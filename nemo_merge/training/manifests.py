"""Manifests of audio: NeMo's and Lhotse's, one JSON object a line, also compressed. Importing this needs no NeMo."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import AudioError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".sph", ".m4a")
MANIFEST_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
FORMATS = (
    f"a NeMo manifest or Lhotse cuts ({', '.join(MANIFEST_SUFFIXES)}), a folder, "
    f"or audio files ({', '.join(AUDIO_SUFFIXES)})"
)


def read_manifest(path: Path) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    """SHA-256 of a manifest, and its entries with the places that messages name.

    Raises:
        AudioError: it cannot be read, is of another format, or is empty.
    """
    if not path.name.lower().endswith(MANIFEST_SUFFIXES):
        raise AudioError(f"{path}: of an unknown format; pass {FORMATS}")
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise AudioError(f"{path}: cannot be read ({error})") from error
    found = list(_entries(text, path))
    if not found:
        raise AudioError(f"{path}: empty; it lists no audio")
    return hashlib.sha256(content).hexdigest(), found


def is_cut(item: Mapping[str, Any], place: str) -> bool:
    """Whether an entry is a Lhotse cut, rather than one of a NeMo manifest.

    Raises:
        AudioError: it is neither.
    """
    cut = "audio_filepath" not in item
    if cut and not ({"id", "duration", "recording"} <= item.keys() or {"id", "tracks"} <= item.keys()):
        raise AudioError(f"{place}: neither an entry of a NeMo manifest (audio_filepath) nor a Lhotse cut with audio")
    return cut


def cut_seconds(cut: Mapping[str, Any], place: str) -> float:
    """Length of a Lhotse cut as plain data; a mix ends with the last of its tracks.

    Raises:
        AudioError: it is not said as a number.
    """
    if "tracks" not in cut:
        return seconds_in(cut, "duration", place)
    return max((start + seconds_in(part, "duration", place) for start, part in parts_of(cut)), default=0.0)


def parts_of(cut: Mapping[str, Any]) -> Iterator[tuple[float, Mapping[str, Any]]]:
    """The cuts of a mix with the seconds at which they start, or a cut itself."""
    if "tracks" not in cut:
        yield 0.0, cut
    for track in cut.get("tracks", ()):
        yield float(track.get("offset") or 0.0), track["cut"]


def audio_file(item: Mapping[str, Any], manifest: Path) -> Path:
    """The file that an entry of a NeMo manifest names; relative paths count from the manifest."""
    name = Path(str(item["audio_filepath"]))
    return name if name.is_file() or name.is_absolute() else manifest.parent / name  # as NeMo does


def local_files(cut: Mapping[str, Any]) -> Iterator[Path]:
    """Audio files of a Lhotse cut as plain data, also of a mix."""
    for _, part in parts_of(cut):
        for source in (part.get("recording") or {}).get("sources", ()):
            if source.get("type") == "file":
                yield Path(source["source"])


def seconds_in(item: Mapping[str, Any], key: str, place: str) -> float:
    """A number of seconds in an entry.

    Raises:
        AudioError: it is not a number from 0 on.
    """
    value = item[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 0):
        raise AudioError(f"{place}: {key}={value!r} is not a number of seconds")
    return float(value)


def seconds_of(file: Path) -> float:
    """Length of an audio file, from its header.

    Raises:
        AudioError: it cannot be read.
    """
    import soundfile

    try:
        return float(soundfile.info(str(file)).duration)
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError(f"{file}: cannot be read as audio ({error})") from error


def _entries(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a manifest, one a line or all in one list."""
    try:
        if text.lstrip().startswith("["):
            items = [(f"{path}, entry {number}", item) for number, item in enumerate(json.loads(text), 1)]
        else:
            lines = enumerate(text.splitlines(), 1)
            items = [(f"{path}, line {number}", json.loads(line)) for number, line in lines if line.strip()]
    except json.JSONDecodeError as error:
        raise AudioError(f"{path}: not JSON ({error}); pass {FORMATS}") from error
    for place, item in items:
        if not isinstance(item, dict):
            raise AudioError(f'{place}: not an object such as {{"audio_filepath": "a.wav", "duration": 3.2}}')
        yield place, item
