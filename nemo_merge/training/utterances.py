"""Test sets: what a path holds, utterance by utterance, and their samples. Nothing here imports NeMo."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AudioError
from .manifests import (
    AUDIO_SUFFIXES,
    FORMATS,
    audio_file,
    cut_seconds,
    is_cut,
    local_files,
    parts_of,
    read_manifest,
    seconds_in,
    seconds_of,
)

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

TOLERANCE = 0.05
"""Seconds that audio may be shorter than its manifest says: rounded durations, and the padding of lossy formats."""
SHORTEST = 0.05
"""Seconds below which audio is too short for the windows of features."""
Channel = int | str | None
_IDS = ("id", "utt_id", "utterance_id")
_LANGUAGES = ("lang", "language", "source_lang")
_SPEAKERS = ("speaker", "speaker_id")


@dataclass(frozen=True)
class Utterance:
    """A stretch of audio to recognise.

    Attributes:
        id: unique in its set.
        duration: seconds; None if the header of the file does not tell.
        path: audio file, if it is in one.
        offset: seconds from the beginning of the file.
        channel: of the file, if the manifest chooses one.
        cut: a Lhotse cut as plain data, or None for a file.
        text: what was said, if known.
        lang: language of the speech, if known.
        speaker, domain: if known.
        slots: other fields of the manifest, from which prompts are filled.
    """

    id: str
    duration: float | None
    path: str | None = None
    offset: float = 0.0
    channel: int | None = None
    cut: Mapping[str, Any] | None = None
    text: str | None = None
    lang: str | None = None
    speaker: str | None = None
    domain: str | None = None
    slots: Mapping[str, Any] = field(default_factory=dict)

    def files(self) -> list[Path]:
        """Local audio files that it needs."""
        return list(local_files(self.cut)) if self.cut is not None else [Path(str(self.path))]


@dataclass(frozen=True)
class TestSet:
    """Utterances, in the order of their source.

    Attributes:
        utterances: those that can be tried.
        skipped: why the others cannot, by id.
        sha256: digest of the manifest, or of the files' names and sizes.
    """

    utterances: Sequence[Utterance]
    skipped: Mapping[str, str]
    sha256: str


def read_test_set(path: Path) -> TestSet:
    """Reads a test set: Lhotse cuts, a NeMo manifest, or a folder of audio files.

    A cut with one supervision has the supervision's id, another its own; the texts of several supervisions are joined.
    Entries of NeMo manifests without an id are called by ``audio_filepath`` as it stands there, with ``@offset`` if
    they have one, as ``nemo-merge score`` calls them; files of a folder by their path in it, without suffix. Of several
    utterances with one id the first stays.

    Raises:
        AudioError: nothing is there, or it is of another format.
    """
    if path.is_dir():
        if any(path.glob("cuts.*.jsonl*")):
            raise AudioError(f"{path}: holds Lhotse shards; write cuts with audio files of their own first")
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file())
        if not files:
            raise AudioError(f"{path}: no audio in this folder (looked for {', '.join(AUDIO_SUFFIXES)})")
        listing = "".join(f"{file.relative_to(path)}\t{file.stat().st_size}\n" for file in files)
        digest = hashlib.sha256(listing.encode()).hexdigest()
        found: Iterator[Utterance] = (_of_file(file, path) for file in files)
    elif path.is_file():
        digest, entries = read_manifest(path)
        found = (_of_entry(item, place, path) for place, item in entries)
    else:
        raise AudioError(f"{path}: no such file or folder; test sets are {FORMATS}")
    utterances: dict[str, Utterance] = {}
    skipped: dict[str, str] = {}
    for item in found:
        if item.id in utterances or item.id in skipped:
            skipped[f"{item.id} (again)"] = "there is an utterance of this id before; ids must differ"
        elif missing := [file for file in item.files() if not file.is_file()]:
            skipped[item.id] = f"{missing[0]} does not exist; relative paths of NeMo manifests count from the manifest"
        else:
            utterances[item.id] = item
    return TestSet(list(utterances.values()), skipped, digest)


def load_samples(utterance: Utterance, rate: int, channel: Channel = None) -> Float[np.ndarray, " samples"]:
    """Samples of an utterance in one channel, float32.

    Args:
        utterance: what to load.
        rate: samples per second; audio of another rate is resampled, by Lhotse.
        channel: which one of several, or ``"mix"`` for their mean; a channel that the manifest chooses goes before.

    Raises:
        AudioError: it cannot be read, is shorter than the manifest says, has several channels of which none is chosen,
            or holds values that are not finite.
    """
    import numpy as np
    from lhotse import Recording
    from lhotse.serialization import deserialize_item

    try:
        if utterance.cut is not None:
            cut = deserialize_item(copy.deepcopy(dict(utterance.cut)))
        else:
            whole = Recording.from_file(str(utterance.path), recording_id=utterance.id).to_cut()
            wanted = whole.duration - utterance.offset if utterance.duration is None else utterance.duration
            left = min(wanted, whole.duration - utterance.offset)
            if left <= 0 or wanted - left > TOLERANCE:
                raise AudioError(f"the file has {whole.duration:.2f} s; {utterance.offset + wanted:.2f} s are needed")
            cut = whole.truncate(offset=utterance.offset, duration=left) if left < whole.duration else whole
        samples = cut.resample(rate).load_audio() if cut.sampling_rate != rate else cut.load_audio()
    except AudioError:
        raise
    except Exception as error:  # every audio backend has errors of its own
        raise AudioError(f"cannot be read as audio ({type(error).__name__}: {_first_line(error)})") from error
    chosen = _one_channel(samples, channel if utterance.channel is None else utterance.channel)
    if chosen.size < max(SHORTEST, (utterance.duration or 0.0) - TOLERANCE) * rate:
        wanted = f", of which the manifest promises {utterance.duration:.2f} s" if utterance.duration else ""
        raise AudioError(f"holds {chosen.size / rate:.2f} s of audio{wanted}")
    if not np.isfinite(chosen).all():
        raise AudioError("holds samples that are not finite")
    return chosen


def _one_channel(samples: Float[np.ndarray, "channels samples"], channel: Channel) -> Float[np.ndarray, " samples"]:
    import numpy as np

    count = len(samples)
    if count == 1:
        return np.ascontiguousarray(samples[0], dtype=np.float32)
    if channel is None:
        raise AudioError(f"has {count} channels; choose one, or mix them")
    if channel == "mix":
        return np.asarray(samples.mean(0), dtype=np.float32)
    if int(channel) >= count:
        raise AudioError(f"has {count} channels, so there is no channel {channel}; the first is 0")
    return np.ascontiguousarray(samples[int(channel)], dtype=np.float32)


def _of_file(file: Path, folder: Path) -> Utterance:
    return Utterance(file.relative_to(folder).with_suffix("").as_posix(), _rest_of(file, 0.0), str(file))


def _rest_of(file: Path, offset: float) -> float | None:
    """Seconds from an offset to the end of a file; None if there are none, of which loading says the reason."""
    try:
        seconds = seconds_of(file) - offset
    except AudioError:
        return None
    return seconds if seconds > 0 else None


def _of_entry(item: Mapping[str, Any], place: str, manifest: Path) -> Utterance:
    return _of_cut(item, place) if is_cut(item, place) else _of_row(item, place, manifest)


def _of_row(item: Mapping[str, Any], place: str, manifest: Path) -> Utterance:
    offset = seconds_in(item, "offset", place) if item.get("offset") else 0.0
    name = _first(item, _IDS) or str(item["audio_filepath"]) + (f"@{item['offset']}" if offset else "")
    channel = item.get("channel")
    if channel is not None and (isinstance(channel, bool) or not isinstance(channel, int) or channel < 0):
        raise AudioError(f"{place}: channel={channel!r} is not a number from 0 on")
    file = audio_file(item, manifest)
    known = item.get("duration") is not None
    return Utterance(
        name,
        seconds_in(item, "duration", place) if known else _rest_of(file, offset),
        str(file),
        offset,
        channel,
        text=_text(item, place),
        lang=_first(item, _LANGUAGES),
        speaker=_first(item, _SPEAKERS),
        domain=_first(item, ("domain",)),
        slots=item,
    )


def _of_cut(item: Mapping[str, Any], place: str) -> Utterance:
    timed = [(at + one.get("start", 0.0), one) for at, part in parts_of(item) for one in part.get("supervisions") or ()]
    said = [one for _, one in sorted(timed, key=lambda pair: pair[0])]
    texts = [text for one in said if (text := _text(one, place)) is not None]
    first: Mapping[str, Any] = said[0] if said else {}
    custom = {**(item.get("custom") or {}), **(first.get("custom") or {})}
    files = list(local_files(item))
    return Utterance(
        str(first["id"] if len(said) == 1 else item["id"]),
        cut_seconds(item, place),
        str(files[0]) if len(files) == 1 else None,
        float(item.get("start") or 0.0),
        cut=item,
        text=" ".join(texts) if texts else None,
        lang=_first(first, _LANGUAGES) or _first(custom, _LANGUAGES),
        speaker=_first(first, _SPEAKERS),
        domain=_first(custom, ("domain",)),
        slots=custom,
    )


def _first(item: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    return next((str(item[key]) for key in keys if item.get(key) not in (None, "")), None)


def _text(item: Mapping[str, Any], place: str) -> str | None:
    text = item.get("text")
    if text is not None and not isinstance(text, str):
        raise AudioError(f"{place}: the text is {type(text).__name__}, not a string")
    return text


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
