"""Kaldi data directories: ``wav.scp``, ``text`` and, for long recordings, ``segments``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ...errors import CorpusError
from ..sessions import Audio, Session, Utterance
from ..source import Source
from ._times import seconds

_LEVELS = 3  # of folders above a data directory
_FILE = re.compile(r"""(?:^|[\s"'])([^\s"'|]+\.(?:wav|flac|sph|mp3|ogg|opus|m4a))\b""", re.IGNORECASE)


def kaldi_sessions(source: Source, folder: Path, audio_dirs: list[Path] | None = None) -> Iterator[Session]:
    """Sessions of a data directory, one per recording, in the order of ``wav.scp``.

    The entries of ``wav.scp`` are repaired: relative paths count from the directory or one of those above it, paths
    that do not exist are looked for below ``audio_dirs`` by their name, and a pipe of which one file is the input
    (``sph2pipe -c 2 a.sph |``) is replaced by that file and its channel. Nothing is ever run.

    Args:
        source: the corpus.
        folder: with ``wav.scp``, ``text``, and optionally ``segments``, ``utt2spk``, ``spk2gender`` and ``utt2lang``.
        audio_dirs: where to look for audio; the folder and the one above when None.

    Raises:
        CorpusError: ``wav.scp`` or ``text`` is missing.
    """
    for name in ("wav.scp", "text"):
        if not (folder / name).is_file():
            raise CorpusError(f"{folder}: no {name}, so it is no Kaldi data directory")
    tables = {name: _table(source, folder / name) for name in ("utt2spk", "spk2gender", "utt2lang")}
    segments = _segments(source, folder / "segments") if (folder / "segments").is_file() else None
    found = _Audio([folder, *(audio_dirs or [folder.parent])])
    by_recording: dict[str, list[Utterance]] = {}
    for place, line in source.lines(folder / "text"):
        if not line.strip():
            continue
        utterance, text = _pair(line)
        segment = (utterance, 0.0, None, place) if segments is None else segments.pop(utterance, None)
        if segment is None:
            source.problems.add("row", place, f"{utterance} is not in {folder / 'segments'}")
            continue
        recording, start, end, _ = segment
        speaker = tables["utt2spk"].get(utterance)
        by_recording.setdefault(recording, []).append(
            Utterance(
                id=utterance,
                place=place,
                text=" ".join(text.split()),
                start=start,
                end=end,
                speaker=speaker,
                gender={"m": "Male", "f": "Female"}.get(tables["spk2gender"].get(speaker or "", "")),
                language=tables["utt2lang"].get(utterance),
            )
        )
    for utterance, (*_, place) in (segments or {}).items():
        source.problems.add("missing_text", place, f"{utterance} is not in {folder / 'text'}")
    for place, line in source.lines(folder / "wav.scp"):
        if not line.strip():
            continue
        recording, entry = _pair(line)
        utterances = by_recording.pop(recording, None)
        if not utterances:
            continue
        path, channel = found.repair(entry)
        if path is None:
            source.problems.add("row", place, f"{entry!r} is a pipe without one input file; it is not run")
            continue
        for item in utterances:
            item.channel = channel
        yield Session(recording, Audio(path), utterances)
    for recording, utterances in by_recording.items():
        for item in utterances:
            source.problems.add("missing_audio", item.place, f"{recording} is not in {folder / 'wav.scp'}")


class _Audio:
    """Finds audio by its path, or by its name below some folders, which are listed when first needed."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders
        self._names: dict[str, Path] | None = None

    def repair(self, entry: str) -> tuple[Path | None, int]:
        """The file of an entry of ``wav.scp`` and the channel that it selects."""
        channel = 0
        if entry.endswith("|"):
            files = _FILE.findall(entry)
            if len(files) != 1:
                return None, 0
            if selected := re.search(r"-c\s*([12])\b", entry):
                channel = int(selected[1]) - 1
            entry = files[0]
        path = Path(entry)
        if path.is_absolute() and path.is_file():
            return path, channel
        above = list(self._folders[0].resolve().parents)[:_LEVELS]  # wav.scp is mostly written from a recipe's folder
        for candidate in [
            *(folder / path for folder in [*self._folders, *above]),
            *(f / path.name for f in self._folders),
        ]:
            if candidate.is_file():
                return candidate, channel
        if self._names is None:
            self._names = {file.name: file for folder in self._folders for file in folder.rglob("*") if file.is_file()}
        return self._names.get(path.name, path), channel


def _table(source: Source, path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    return dict(_pair(line) for _, line in source.lines(path) if line.strip())


def _pair(line: str) -> tuple[str, str]:
    """What stands before the first white space, and the rest."""
    key, *rest = line.split(None, 1)
    return key, rest[0].strip() if rest else ""


def _segments(source: Source, path: Path) -> dict[str, tuple[str, float, float | None, str]]:
    """Recording, start, end and place by utterance."""
    segments: dict[str, tuple[str, float, float | None, str]] = {}
    for place, line in source.lines(path):
        cells = line.split()
        if not cells:
            continue
        try:
            utterance, recording, start, end = cells
            # An end of -1 is the end of the recording.
            times = seconds(start), None if float(end) == -1 else seconds(end)
        except ValueError:
            source.problems.add("row", place, f"{line.strip()!r} is not utterance, recording, start and end")
            continue
        if utterance in segments:
            source.problems.add("duplicate_id", place, f"the id {utterance!r} was used before")
            continue
        segments[utterance] = (recording, *times, place)
    return segments
