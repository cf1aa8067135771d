"""Writes manifests: the same bytes for the same rows, and a file is only replaced when its content changed."""

from __future__ import annotations

import filecmp
import gzip
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from .prepared import TYPES, manifest_path


def write_split(folder: Path, stem: str, split: str, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Writes recordings, supervisions and cuts of a split and returns its counts.

    Args:
        folder: where the files go.
        stem: first part of their names.
        split: last part of their names.
        rows: ``recording`` and ``supervisions`` of each session; recordings may come again.
    """
    seconds, utterances, channels, recordings = 0.0, 0, 1, set()
    with ExitStack() as stack:
        files = {kind: stack.enter_context(replaced(manifest_path(folder, stem, kind, split))) for kind in TYPES}
        for row in rows:
            recording = row["recording"]
            if recording is None:
                continue
            if hash(recording["id"]) not in recordings:
                recordings.add(hash(recording["id"]))
                files["recordings"].write(_line(recording))
            channels = max(channels, len(recording.get("channel_ids") or recording["sources"][0]["channels"]))
            for supervision in row["supervisions"]:
                files["supervisions"].write(_line(supervision))
                files["cuts"].write(_line(cut_of(recording, supervision)))
                seconds += supervision["duration"]
                utterances += 1
    return {
        "recordings": len(recordings),
        "utterances": utterances,
        "hours": round(seconds / 3600, 6),
        "channels": channels,
    }


def cut_of(recording: dict[str, Any], supervision: dict[str, Any]) -> dict[str, Any]:
    """The cut of one supervision, as Lhotse writes it."""
    return {
        "id": supervision["id"],
        "start": supervision["start"],
        "duration": supervision["duration"],
        "channel": supervision["channel"],
        "supervisions": [{**supervision, "start": 0.0}],
        "recording": recording,
        "type": "MonoCut",
    }


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """A file, compressed where its name ends in ``.gz``, that takes the place of ``path`` when all is written.

    A file with the same content stays as it is, its time too.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with ExitStack() as stack:
            stream: Any = stack.enter_context(open(partial, "wb"))
            if path.suffix == ".gz":  # without name and time in the header, so that equal rows give equal bytes
                stream = stack.enter_context(gzip.GzipFile("", "wb", 6, stream, mtime=0))
            yield stream
        if path.is_file() and filecmp.cmp(partial, path, shallow=False):
            return
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _line(row: dict[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8")
