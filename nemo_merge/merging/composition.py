"""What a merged model consists of, however often it was extended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError, did_you_mean
from ..vocabulary import Token, Vocabulary
from .inputs import name_of
from .ranges import numbers_of, ranges

_REFERENCE = ("path", "format", "sha256", "adapter", "ema", "pack", "fine_tuned")


@dataclass(frozen=True)
class Member:
    """One expert in a merged model.

    Attributes:
        name: what it is called in ``forget``.
        weight: its weight.
        entry: how it is found and opened again: path, format, SHA-256, options.
        new_rows: rows of the merged model for tokens that the expert has and the base lacks.
        kept_as: the pack that stands for it where the expert itself is gone: path, SHA-256, size, error.

    Raises:
        ConfigError: a name that cannot be that of a file; packs are called by it.
    """

    name: str
    weight: float
    entry: Mapping[str, Any]
    new_rows: tuple[int, ...] = ()
    kept_as: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.name.isprintable() or Path(self.name).name != self.name:
            raise ConfigError(f"{self.name!r} cannot be the name of an expert; choose one that a file may have")

    @property
    def digests(self) -> list[str]:
        """SHA-256 of the expert itself, also where its pack was merged."""
        entry = self.entry["pack"]["expert"] if self.entry.get("format") == "pack" else self.entry
        return sorted(entry["sha256"].values())

    def new_tokens(self, vocabulary: Vocabulary) -> list[Token]:
        """The tokens that the expert has and the base lacks, by the tokens of the merged model."""
        return [vocabulary.tokens[row] for row in self.new_rows if row < len(vocabulary)]

    def record(self) -> dict[str, Any]:
        """As part of the record of a merge."""
        return {
            "name": self.name,
            "weight": self.weight,
            **{key: self.entry[key] for key in _REFERENCE if key in self.entry},
            **({"new_rows": ranges(self.new_rows)} if self.new_rows else {}),
            **({"kept_as": dict(self.kept_as)} if self.kept_as else {}),
        }


@dataclass(frozen=True)
class Composition:
    """The experts in a merged model and the method that they are merged by.

    Attributes:
        members: the experts, in the order in which they came.
        method: name and parameters, ``scale`` among them, without weights.
        history: what was done, one line each.
        approximations: in what the model differs from a merge of its experts.
    """

    members: Sequence[Member]
    method: Mapping[str, Any]
    history: Sequence[str] = ()
    approximations: Sequence[str] = field(default_factory=tuple)

    @classmethod
    def of(cls, record: Mapping[str, Any], path: Path) -> Composition:
        """The composition in a record, or the one of a plain merge.

        Raises:
            CheckpointError: the record does not say it, or is damaged.
        """
        try:
            told = record.get("composition")
            if told is None:
                return cls._of_merge(record)
            members = [
                Member(
                    str(entry["name"]),
                    float(entry["weight"]),
                    {key: entry[key] for key in _REFERENCE if key in entry},
                    tuple(numbers_of(entry.get("new_rows", ""))),
                    entry.get("kept_as"),
                )
                for entry in told["experts"]
            ]
            return cls(members, dict(told["method"]), told.get("history", []), told.get("approximations", []))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path}: its record does not say what was merged ({error!r})") from error

    @classmethod
    def _of_merge(cls, record: Mapping[str, Any]) -> Composition:
        entries = record["experts"]
        method = dict(record["method"])
        weights = method.pop("weights")
        rows = record.get("vocabulary", {}).get("new_rows") or [""] * len(entries)
        names = unique([name_of(Path(entry["path"])) for entry in entries])
        members = [
            Member(name, float(weight), entry, tuple(numbers_of(own)))
            for name, weight, entry, own in zip(names, weights, entries, rows, strict=True)
        ]
        return cls(members, method, [f"{', '.join(names)} merged by {method['name']}"])

    @property
    def names(self) -> list[str]:
        return [member.name for member in self.members]

    @property
    def weights(self) -> list[float]:
        return [member.weight for member in self.members]

    def member(self, name: str) -> Member:
        """The expert of that name.

        Raises:
            ConfigError: there is none.
        """
        for member in self.members:
            if member.name == name:
                return member
        raise ConfigError(f"no expert {name!r} is in the model{did_you_mean(name, self.names)}")

    def record(self) -> dict[str, Any]:
        """For the record of a merge."""
        return {
            "method": dict(self.method),
            "experts": [member.record() for member in self.members],
            "history": list(self.history),
            **({"approximations": list(self.approximations)} if self.approximations else {}),
        }


def unique(names: Sequence[str]) -> list[str]:
    """The names, with numbers behind those that come again.

    Example:
        >>> unique(["pt", "es", "pt"])
        ['pt', 'es', 'pt-2']
    """
    found: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in found:
            number += 1
            candidate = f"{name}-{number}"
        found.append(candidate)
    return found
