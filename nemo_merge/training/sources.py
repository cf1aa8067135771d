"""Data to train on: what a path holds, and how NeMo's loader is told to read and mix it. Nothing here imports NeMo."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, did_you_mean

_KEYS = ("path", "weight", "tags")
_SHAR_CUTS = "cuts.*.jsonl*"
SourceLike = str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """Speech with transcripts.

    Attributes:
        path: cuts, manifest, or folder in Lhotse's Shar format; None for an entry in NeMo's own words.
        kind: NeMo's name of the format: ``lhotse``, ``lhotse_shar``, ``nemo`` or another ``type`` of ``input_cfg``.
        weight: share of the batches that it has among several sources; its number of utterances by default.
        tags: fields to set on every cut, such as ``source_lang``.
        entry: an entry of ``input_cfg`` as NeMo has it, passed on.
    """

    path: Path | None
    kind: str
    weight: float | None = None
    tags: Mapping[str, Any] = field(default_factory=dict)
    entry: Mapping[str, Any] = field(default_factory=dict)

    @property
    def endless(self) -> bool:
        """Whether NeMo repeats it without end, as it does with shards."""
        return self.kind not in ("lhotse", "nemo")

    def files(self) -> list[Path]:
        """What it is read from: the manifest, or the manifests of the shards."""
        if self.path is None:
            return []
        return sorted(self.path.glob(_SHAR_CUTS)) if self.path.is_dir() else [self.path]

    def utterances(self) -> int:
        """Number of lines of the manifest."""
        return sum(1 for file in self.files() for line in _lines(file) if line.strip())

    def input_cfg(self, weight: float | None = None) -> dict[str, Any]:
        """The entry of NeMo's ``input_cfg``."""
        place = {"lhotse": "cuts_path", "lhotse_shar": "shar_path", "nemo": "manifest_filepath"}.get(self.kind, "")
        own: dict[str, Any] = {"type": self.kind, place: str(self.path)}
        entry = dict(self.entry) if self.path is None else own
        if self.tags:
            entry["tags"] = dict(self.tags)
        return entry if weight is None else {**entry, "weight": weight}

    def record(self) -> dict[str, Any]:
        """What an output says of it: with the SHA-256 of the manifests."""
        from ..checkpoints._digests import sha256_of

        said = {"weight": self.weight, "tags": dict(self.tags) or None, "entry": dict(self.entry) or None}
        found: dict[str, Any] = {}
        if self.path is not None:
            found |= {"path": str(self.path), "format": self.kind}
        if digests := {file.name: sha256_of(file) for file in self.files()}:
            found["sha256"] = digests
        return {**found, **{key: value for key, value in said.items() if value is not None}}


def read_source(value: SourceLike, place: str) -> Source:
    """A source from a path, from ``{path, weight, tags}``, or from an entry of NeMo's ``input_cfg``.

    Args:
        value: as in a configuration.
        place: how messages call it, for example ``train[0]``.

    Raises:
        ConfigError: it is missing, of no known format, or has keys that do not exist.
    """
    if isinstance(value, (str, Path)):
        value = {"path": value}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{place}: {value!r} is neither a path nor a mapping with a path")
    weight = value.get("weight")
    if weight is not None and (isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight > 0):
        raise ConfigError(f"{place}: weight={weight!r} is not a positive number")
    if "type" in value:  # NeMo's own words; NeMo checks them
        return Source(None, str(value["type"]), weight, entry={k: v for k, v in value.items() if k != "weight"})
    for key in value:
        if key not in _KEYS:
            raise ConfigError(f"{place}: there is no key {key!r}{did_you_mean(str(key), _KEYS)}")
    tags = value.get("tags") or {}
    if not isinstance(tags, Mapping):
        raise ConfigError(f"{place}: tags={tags!r} is not a mapping such as {{source_lang: pt}}")
    if not value.get("path"):
        raise ConfigError(f"{place}: says no path")
    path = Path(value["path"])
    return Source(path, _kind(path, place), weight, tags)


def mix(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """NeMo's ``input_cfg``; several sources are mixed by their weights, or in proportion to their utterances."""
    if len(sources) == 1:
        return [sources[0].input_cfg()]
    return [item.input_cfg(item.weight or float(item.utterances())) for item in sources]


def check_mix(sources: Sequence[Source], place: str) -> None:
    """Refuses what NeMo cannot mix.

    Raises:
        ConfigError: weights for some sources only, or shards beside single files.
    """
    weights = [item.weight is not None for item in sources]
    if len(sources) > 1 and (any(weights) or any(item.path is None for item in sources)) and not all(weights):
        raise ConfigError(f"{place}: give every source a weight, or none (then they count by their utterances)")
    if len({item.endless for item in sources}) > 1:
        raise ConfigError(f"{place}: shards and single files cannot be mixed; convert one into the other")


def _kind(path: Path, place: str) -> str:
    """The format of what a path holds, from its content."""
    if path.is_dir():
        if any(path.glob(_SHAR_CUTS)):
            return "lhotse_shar"
        raise ConfigError(f"{place}: {path} is a folder without Lhotse shards ({_SHAR_CUTS})")
    if not path.is_file():
        raise ConfigError(f"{place}: {path} does not exist")
    try:
        first = next((line for line in _lines(path) if line.strip()), None)
        entry = json.loads(first) if first else None
    except (OSError, EOFError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{place}: {path} is neither Lhotse cuts nor a NeMo manifest in JSON lines") from error
    if entry is None:
        raise ConfigError(f"{place}: {path} is empty")
    if isinstance(entry, dict) and "audio_filepath" in entry:
        if "duration" not in entry:
            raise ConfigError(f"{place}: {path} is a NeMo manifest without duration, which Lhotse needs")
        return "nemo"
    if isinstance(entry, dict) and {"id", "duration"} <= entry.keys() and {"recording", "tracks"} & entry.keys():
        return "lhotse"
    raise ConfigError(f"{place}: {path} is neither Lhotse cuts nor a NeMo manifest (audio_filepath)")


def _lines(path: Path) -> Any:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        yield from lines
