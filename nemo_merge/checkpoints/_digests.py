"""SHA-256 of files, remembered as long as the files do not change.

Hashing takes most of the time of a simple merge, and the same base is merged many times. What is remembered about a
file is its digest together with size, number and times of its last change, all of which must be the same for it to be
believed; the time of the last change of the file's entry (ctime) is set by the system and not by programs that restore
old times. Files that changed within seconds of being hashed are hashed again. Nothing is remembered where the folder
cannot be written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from pathlib import Path

from ..errors import CheckpointError
from ._work import write_whole

_CHUNK = 1 << 20
_SETTLED = 3_000_000_000
"""Nanoseconds: clocks of file systems are coarse, so a file that has just changed may change again unnoticed."""


def sha256_of(path: Path, stop: threading.Event | None = None, *, anew: bool = False) -> str:
    """SHA-256 of a file, in hexadecimal.

    Args:
        path: the file.
        stop: set from another thread to give up.
        anew: do not believe what is remembered.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        note = _note_of(path)
        before = _state(path)
        if not anew and (known := _remembered(note, before)) is not None:
            return known
        digest, buffer = hashlib.sha256(), bytearray(_CHUNK)
        view = memoryview(buffer)
        with open(path, "rb", buffering=0) as file:
            while (count := file.readinto(buffer)) and not (stop and stop.is_set()):
                digest.update(view[:count])
        if not (stop and stop.is_set()) and _state(path) == before and time.time_ns() - max(before[2:]) > _SETTLED:
            _remember(note, before, digest.hexdigest())
    except OSError as error:  # also a disk or network that fails in the middle
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where digests are remembered: ``nemo_merge/sha256`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "nemo_merge", "sha256")


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _note_of(path: Path) -> Path:
    return cache_folder() / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"


def _remembered(note: Path, state: list[int]) -> str | None:
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        same = content["state"] == state and len(bytes.fromhex(content["sha256"])) == 32
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content["sha256"] if same else None


def _remember(note: Path, state: list[int], digest: str) -> None:
    with contextlib.suppress(Exception):  # a convenience, never a reason to fail
        note.parent.mkdir(parents=True, exist_ok=True)
        write_whole(note, json.dumps({"state": state, "sha256": digest}).encode())
