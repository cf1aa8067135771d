"""What is known of finished stages: markers, with fingerprints of everything that their results depend on."""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import __version__

_TOOLS = ("torch", "nemo_toolkit", "lightning", "lhotse", "numpy")
_HASH_LIMIT = 256 << 20


def digest(value: Any) -> str:
    """Fingerprint of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def identity(path: str | Path) -> str:
    """What tells whether a file changed: its content, or its size and time if it is large.

    A gzipped file is looked at inside, because gzip writes the time of day into its header. A folder is what is in it.
    """
    if Path(path).is_dir():
        inside = sorted(item for item in Path(path).rglob("*") if item.is_file())
        return digest([[str(item.relative_to(path)), identity(item)] for item in inside])
    status = Path(path).stat()
    if status.st_size > _HASH_LIMIT:
        return f"{status.st_size} bytes at {status.st_mtime_ns}"
    opener = gzip.open if str(path).endswith(".gz") else open
    content = hashlib.sha256()
    with opener(path, "rb") as file:
        while chunk := file.read(1 << 20):
            content.update(chunk)
    return content.hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as ``sha256sum`` shows it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def described(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Identity and size of files, by path."""
    return {str(path): {"identity": identity(path), "bytes": path.stat().st_size} for path in paths}


def tools() -> dict[str, str]:
    """Versions of what makes results."""
    found = {"nemo_merge": __version__, "python": ".".join(platform.python_version_tuple()[:2])}
    for package in _TOOLS:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def changes(before: Any, now: Any, place: str = "") -> Iterator[str]:
    """Dotted names of what differs between two nested mappings."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in {*before, *now}:
            yield from changes(before.get(key), now.get(key), f"{place}.{key}" if place else str(key))
    elif before != now:
        yield place


def read_marker(path: Path) -> dict[str, Any]:
    """What a marker says; nothing if there is none, or none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_marker(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a marker; it appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)
