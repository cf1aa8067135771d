"""Unlabelled audio that a user points at: what there is, and a drawn part of it as pieces of bounded length."""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AudioError
from .manifests import (
    AUDIO_SUFFIXES,
    FORMATS,
    audio_file,
    cut_seconds,
    is_cut,
    local_files,
    read_manifest,
    seconds_in,
    seconds_of,
)

LONGEST_PIECE = 30.0  # seconds; longer recordings are cut, because attention takes memory with the square of the length
SHORTEST_PIECE = 0.2  # seconds; shorter ones give no more than two frames after subsampling by 8
LEAST_AUDIO = 10.0  # seconds in all; 125 frames of 80 ms, from which a variance is off by some 13 %

Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class Piece:
    """A stretch of audio.

    Attributes:
        start, duration: seconds; the start counts from the beginning of the file or the cut.
        path: audio file, or None for a cut.
        cut: a Lhotse cut as plain data, or None for a file.
    """

    start: float
    duration: float
    path: str | None = None
    cut: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class AudioSample:
    """Audio to estimate statistics from.

    Attributes:
        source: what the user gave: a path, or the paths of files.
        kind: ``nemo manifest``, ``lhotse cuts``, ``folder`` or ``files``.
        sha256: digest of the manifest, or of the list of files with their sizes.
        available: number of recordings of sufficient length in the source.
        pieces: those that were drawn.
        asked: how many seconds were asked for.
        seed: of the draw.
    """

    source: str | list[str]
    kind: str
    sha256: str
    available: int
    pieces: Sequence[Piece]
    asked: float
    seed: int

    @property
    def seconds(self) -> float:
        """Length of the pieces in all."""
        return math.fsum(piece.duration for piece in self.pieces)

    def record(self) -> dict[str, Any]:
        """What a merged checkpoint says of the audio, as plain data."""
        return {
            "path": self.source,
            "seconds": self.asked,
            "seed": self.seed,
            "kind": self.kind,
            "sha256": self.sha256,
            "recordings": self.available,
            "pieces": len(self.pieces),
            "length": round(self.seconds, 3),
        }


def read_audio(source: Source, *, seconds: float = 600.0, seed: int = 0) -> AudioSample:
    """Finds audio and draws a sample of it; headers are read, samples are not.

    Recordings of more than 30 s are cut into equal pieces. Pieces are drawn at random without replacement, all alike,
    until ``seconds`` are reached, so that every speaker, file and part of a long recording has its share.

    Args:
        source: NeMo manifest (``audio_filepath``, optional ``offset`` and ``duration``; relative paths count from the
            manifest), Lhotse cuts, a folder that is searched with its subfolders, or a list of audio files.
        seconds: how much to draw.
        seed: of the draw; the same source, seconds and seed give the same pieces.

    Raises:
        AudioError: nothing is there, the format is another, a file is missing, or all is too short.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds >= LEAST_AUDIO:
        raise AudioError(f"audio: seconds={seconds!r} is not a number from {LEAST_AUDIO:g} on")
    given: str | list[str]
    if isinstance(source, (str, os.PathLike)):
        given = shown = str(source)
        kind, digest, pieces = _from_path(Path(source))
    elif isinstance(source, Sequence) and source and all(isinstance(item, (str, os.PathLike)) for item in source):
        shown, kind = f"{len(source)} files", "files"
        given = sorted(map(str, source))  # sums do not depend on the order of a list
        digest, pieces = _files([Path(item) for item in given])
    else:
        raise AudioError(f"audio: {source!r} is neither a path nor a list of paths; pass {FORMATS}")
    long_enough = [piece for piece in pieces if piece.duration >= SHORTEST_PIECE]
    total = math.fsum(piece.duration for piece in long_enough)
    if total < LEAST_AUDIO:
        raise AudioError(
            f"{shown}: holds {total:.1f} s of audio in recordings of {SHORTEST_PIECE:g} s or more; "
            f"give {LEAST_AUDIO:g} s at least, better some minutes"
        )
    drawn = _draw([part for piece in long_enough for part in _parts(piece)], seconds, seed)
    for piece in drawn:
        _check_there(piece, shown)
    return AudioSample(given, kind, digest, len(long_enough), drawn, seconds, seed)


def _from_path(path: Path) -> tuple[str, str, list[Piece]]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file())
        if not files:
            raise AudioError(f"{path}: no audio in this folder (looked for {', '.join(AUDIO_SUFFIXES)})")
        return "folder", *_files(files, path)
    if not path.is_file():
        raise AudioError(f"{path}: no such file or folder; audio is {FORMATS}")
    if path.suffix.lower() in AUDIO_SUFFIXES:
        return "files", *_files([path])
    return _manifest(path)


def _files(files: Sequence[Path], root: Path | None = None) -> tuple[str, list[Piece]]:
    """Digest of names and sizes, and one piece per file."""
    listing, pieces = hashlib.sha256(), []
    for file in files:
        if not file.is_file():
            raise AudioError(f"{file}: no such audio file")
        listing.update(f"{file.relative_to(root) if root else file}\t{file.stat().st_size}\n".encode())
        pieces.append(Piece(0.0, seconds_of(file), str(file)))
    return listing.hexdigest(), pieces


def _manifest(path: Path) -> tuple[str, str, list[Piece]]:
    digest, found = read_manifest(path)
    kinds, pieces = set(), []
    for place, item in found:
        cut = is_cut(item, place)
        kinds.add("lhotse cuts" if cut else "nemo manifest")
        if cut:
            pieces.append(Piece(0.0, cut_seconds(item, place), cut=item))
            continue
        file = audio_file(item, path)
        start = seconds_in(item, "offset", place) if item.get("offset") else 0.0
        known = item.get("duration") is not None
        duration = seconds_in(item, "duration", place) if known else seconds_of(file) - start
        pieces.append(Piece(start, duration, str(file)))
    return " and ".join(sorted(kinds)), digest, pieces


def _parts(piece: Piece) -> list[Piece]:
    """Equal parts of a piece, none longer than :data:`LONGEST_PIECE`."""
    count = max(1, math.ceil(piece.duration / LONGEST_PIECE))
    length = piece.duration / count
    return [Piece(piece.start + index * length, length, piece.path, piece.cut) for index in range(count)]


def _draw(pieces: Sequence[Piece], seconds: float, seed: int) -> list[Piece]:
    """Pieces in random order up to a length, then put back into the order of the source."""
    order = list(range(len(pieces)))
    random.Random(seed).shuffle(order)
    drawn, total = [], 0.0
    for index in order:
        if total >= seconds:
            break
        drawn.append(index)
        total += pieces[index].duration
    return [pieces[index] for index in sorted(drawn)]


def _check_there(piece: Piece, shown: str) -> None:
    """A message now rather than after the merge."""
    for file in [Path(piece.path)] if piece.path else local_files(piece.cut or {}):
        if not file.is_file():
            raise AudioError(
                f"{shown}: names {file}, which does not exist; tarred audio must be unpacked, and relative paths count "
                "from the manifest"
            )
