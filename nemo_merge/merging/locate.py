"""Finds the inputs of an earlier merge again: by their paths, and experts also by the packs that were made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints import Checkpoint, PackCheckpoint, open_checkpoint
from ..checkpoints.pack import PACK_SUFFIX
from ..errors import CheckpointError
from .composition import Member
from .inputs import Source, open_source
from .provenance import source_of
from .reproduce import places_of


@dataclass(frozen=True)
class Found:
    """An input that was found.

    Attributes:
        source: how to open it.
        error: what it lost of the expert's change, relative to that, as the pack says; 0 for the expert itself.
    """

    source: Source
    error: float = 0.0


class Locator:
    """Looks for inputs of a record.

    Args:
        folders: where paths are looked up, and files by their names.
        packs: folder of packs, which are known by the SHA-256 of their expert.

    Raises:
        CheckpointError: a pack in the folder is damaged.
    """

    def __init__(self, folders: Sequence[Path], packs: Path | None = None) -> None:
        self._folders = folders
        self._packs = {} if packs is None else {expert_of(path): path for path in sorted(packs.glob("*" + PACK_SUFFIX))}

    def has_pack(self, expert: Checkpoint) -> bool:
        """Whether the folder holds a pack of this expert."""
        return tuple(sorted(expert.sha256().values())) in self._packs

    def add(self, pack: Path) -> None:
        """Takes a pack that was made meanwhile into account."""
        self._packs[expert_of(pack)] = pack

    def base(self, entry: Mapping[str, Any], given: Source | None) -> Source:
        """The base, where the user says it is or where it was.

        Raises:
            CheckpointError: not found, or another file.
        """
        if given is not None:
            if not _is(given, entry):
                raise CheckpointError(
                    f"{given}: is not the base of the merged model, which is {entry['path']} (sha256 "
                    f"{_first(entry)}); pass that file as base"
                )
            return given
        places = list(places_of(entry, self._folders))
        for place in places:
            if _is(source := source_of(entry, str(place)), entry):
                return source
        state = f"has changed ({places[0]} has another SHA-256)" if places else "is not there any more"
        raise CheckpointError(
            f"{entry['path']}: the base of the merged model {state}; pass it as base (sha256 {_first(entry)})"
        )

    def expert(self, member: Member) -> Found | None:
        """An expert: what was merged, or a pack of it."""
        for place in places_of(member.entry, self._folders):
            if _is(source := source_of(member.entry, str(place)), member.entry):
                return Found(source)
        path = self._pack(member)
        if path is None:
            return None
        with open_checkpoint(path) as pack:
            assert isinstance(pack, PackCheckpoint)
            return Found(str(path), pack.about["error"])

    def kept(self, member: Member) -> Mapping[str, Any] | None:
        """The pack that there is of an expert, as it is recorded; what was recorded before if it is not to be seen."""
        path = self._pack(member)
        return member.kept_as if path is None else described(path)

    def _pack(self, member: Member) -> Path | None:
        wanted = tuple(member.digests)
        places = list(places_of(member.kept_as, self._folders)) if member.kept_as is not None else []
        if wanted in self._packs:
            places.insert(0, self._packs[wanted])
        return next((place for place in places if expert_of(place) == wanted), None)


def described(path: Path) -> dict[str, Any]:
    """A pack, for the record: where it is, its digest and size, and what it lost."""
    with open_checkpoint(path) as pack:
        assert isinstance(pack, PackCheckpoint)
        return {
            "path": str(path),
            "sha256": pack.sha256(),
            "bytes": path.stat().st_size,
            "error": pack.about["error"],
        }


def expert_of(path: Path) -> tuple[str, ...]:
    """SHA-256 of the expert that a file is a pack of; empty if it is none."""
    with open_checkpoint(path) as pack:
        return tuple(sorted(pack.about["expert"]["sha256"].values())) if isinstance(pack, PackCheckpoint) else ()


def _is(source: Source, entry: Mapping[str, Any]) -> bool:
    """Whether a file has the digests of a record's entry, whatever it is called."""
    with ExitStack() as stack:
        return sorted(open_source(source, stack).sha256().values()) == sorted(entry["sha256"].values())


def _first(entry: Mapping[str, Any]) -> str:
    return next(iter(entry["sha256"].values()), "?")[:16] + "..."
