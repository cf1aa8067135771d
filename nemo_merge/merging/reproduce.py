"""Repeats a merge from the record that its output carries, and compares."""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import RECORD, open_checkpoint
from ..errors import CheckpointError, PlanError
from .api import Options, merge_variants
from .inputs import Source
from .provenance import record_of, source_of
from .recalibration import asked
from .update import method_of, update_inputs

_ENVIRONMENT = ("nemo_merge", "versions", "command", "composition", "extension")
"""Parts of a record that may differ between two merges that give the same tensors."""


@dataclass(frozen=True)
class Reproduction:
    """What repeating a merge showed.

    Attributes:
        file: the checkpoint whose merge was repeated.
        same_bytes: whether the repeated files are equal to the bit.
        different: tensors that differ, if the files do.
        versions: what was other than at the first merge, as ``name: then, now``.
    """

    file: Path
    same_bytes: bool
    different: Sequence[str] = ()
    versions: Sequence[str] = ()

    @property
    def same(self) -> bool:
        """Whether every tensor is equal to the bit."""
        return not self.different

    def __str__(self) -> str:
        if self.same_bytes:
            return f"{self.file}: repeated, every byte is the same"
        made = f" (made with {'; '.join(self.versions)})" if self.versions else ""
        if self.same:
            return f"{self.file}: repeated, every tensor is the same to the bit, other parts of the file differ{made}"
        return (
            f"{self.file}: repeated, but {len(self.different)} tensors differ, the first is {self.different[0]!r}{made}"
        )


def reproduce(
    file: str | os.PathLike[str],
    *,
    inputs: Sequence[str | os.PathLike[str]] = (),
    workers: int | None = None,
) -> Reproduction:
    """Merges again as a checkpoint's record says, beside the checkpoint, compares the two, and removes the new one.

    Args:
        file: a merged checkpoint, or the ``merge.yaml`` beside it.
        inputs: folders in which inputs are looked for by their names when they are not where they were.
        workers: threads.

    Raises:
        CheckpointError: the file carries no record of a merge, or an input is not to be found or has changed.
        PlanError: with these inputs the merge would be another one.
    """
    path = Path(file)
    if path.name.endswith(f".{RECORD}"):
        path = path.with_name(path.name.removesuffix(f".{RECORD}"))
    elif path.name == RECORD:
        path = path.parent
    with open_checkpoint(path) as checkpoint:
        record = record_of(checkpoint)
    folders = [Path(), path.parent, *map(Path, inputs)]
    base = _found(record["base"], folders) if record.get("base") else None
    experts: Sequence[Source] = [_found(expert, folders) for expert in record["experts"]]
    versions: list[str] = []

    def as_recorded(found: dict[str, Any]) -> dict[str, Any]:
        _compare(path, record, found)
        versions.extend(_changes(record, found))
        return dict(record)

    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        again = work / path.name
        options = recorded_options(record, workers=workers, hash_anew=True, as_recorded=as_recorded)
        with ExitStack() as stack:
            if "extension" in record:
                base, experts = update_inputs(base, experts, record["extension"], options, work, stack)
            merge_variants(base, experts, {again: method_of(record["method"])}, options)
        same = _same_files(again, path)
        different = [] if same else _different(again, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Reproduction(path, same, different, versions)


def recorded_options(record: Mapping[str, Any], **others: Any) -> Options:
    """The options of the merge of a record, apart from those that leave no trace in it."""
    said: dict[str, Any] = {
        "rules": record.get("rules", ()),
        "then": record.get("then", ()),
        "batch_norm": record["batch_norm"],
        "audio": asked(record),
        "dtype": record["dtype"],
        "vocabulary": record.get("vocabulary", {}).get("policy", "strict"),
        "device": record.get("device", "cpu"),
        "as_adapter": record.get("as_adapter"),
    }
    return Options(**{**said, **others})


def _found(entry: Mapping[str, Any], folders: Sequence[Path]) -> Source:
    """The input of a record, wherever it is now."""
    place = next(places_of(entry, folders), None)
    if place is None:
        raise CheckpointError(
            f"{entry['path']}: not found, though the merge was made from it; say where it is with --inputs FOLDER "
            f"(sha256 {next(iter(entry['sha256'].values()), '?')[:16]}...)"
        )
    return source_of(entry, str(place))


def places_of(entry: Mapping[str, Any], folders: Sequence[Path]) -> Iterator[Path]:
    """What may be the input of a record: what is where it was, then files or folders of that name elsewhere."""
    path = Path(entry["path"])
    places = [folder / path for folder in folders] + [folder / path.name for folder in folders]
    return (place for place in dict.fromkeys(places) if place.exists())


def _compare(path: Path, record: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises if the merge that is about to be made is not the one of the record."""
    problems = []
    then = [*([record["base"]] if record.get("base") else []), *record["experts"]]
    now = [*([found["base"]] if found.get("base") else []), *found["experts"]]
    for a, b in zip(then, now, strict=True):
        if a["sha256"] != b["sha256"]:
            problems.append(f"{b['path']}: is not the file that {path} was merged from (its SHA-256 differs)")
    for key in sorted(record.keys() | found.keys()):
        if key not in (*_ENVIRONMENT, "base", "experts") and record.get(key) != found.get(key) and not problems:
            problems.append(f"{path}: its record says {key}={record.get(key)!r}, now it would be {found.get(key)!r}")
    if problems:
        raise PlanError(problems)


def _changes(record: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    then = {"nemo_merge": record["nemo_merge"], **record["versions"]}
    now = {"nemo_merge": found["nemo_merge"], **found["versions"]}
    return [f"{name} {then.get(name)}, now {now.get(name)}" for name in now if then.get(name) != now.get(name)]


def _same_files(again: Path, path: Path) -> bool:
    if again.is_file():
        return filecmp.cmp(again, path, shallow=False)
    names = [item.name for item in again.iterdir() if item.name != "README.md"]  # people edit model cards
    return not any(filecmp.cmpfiles(again, path, names, shallow=False)[1:])


def _different(again: Path, path: Path) -> list[str]:
    with open_checkpoint(again) as new, open_checkpoint(path) as old:
        names = [*old, *(name for name in new if name not in old.specs)]
        return [
            name
            for name in names
            if name not in new.specs or name not in old.specs or not torch.equal(new[name], old[name])
        ]
