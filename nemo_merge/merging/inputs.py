"""Opens what a merge reads: paths, open checkpoints, and mappings with a path and how to read it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoints import Checkpoint, Metadata, TensorSpec, open_checkpoint
from ..checkpoints.pack import PACK_SUFFIX
from ..errors import CheckpointError, ConfigError, did_you_mean
from ..vocabulary import Vocabulary
from .adapters import bind_adapters

Source = str | os.PathLike[str] | Checkpoint | Mapping[str, Any]
"""A checkpoint: a path, one that is open, or a mapping with ``path`` and options of :func:`open_checkpoint`."""

_OPTIONS = ("path", "prefix", "ema")
_PREFIXES = ("module.", "model.", "_forward_module.", "_orig_mod.", "state_dict.")
"""What wrappers of models (data parallel, Lightning, torch.compile) put before the names of all tensors."""


def open_inputs(
    base: Source | None, experts: Sequence[Source], stack: ExitStack
) -> tuple[Checkpoint | None, list[Checkpoint]]:
    """Opens base and experts, and gives the experts' tensors the names that they have in the base.

    Args:
        base: the base, if there is one.
        experts: the experts.
        stack: closes them.

    Raises:
        CheckpointError: one cannot be read.
        ConfigError: one is none of the forms of :data:`Source`.
    """
    if isinstance(experts, (str, os.PathLike, Checkpoint, Mapping)):
        raise ConfigError("experts must be a list, even if there is only one")
    opened = open_source(base, stack) if base is not None else None
    opened, others = bind_adapters(opened, [open_source(expert, stack) for expert in experts])
    template = opened if opened is not None else others[0] if others else None
    return opened, [other if other is template or template is None else renamed(other, template) for other in others]


def open_source(source: Source, stack: ExitStack) -> Checkpoint:
    """Opens one checkpoint."""
    if isinstance(source, Checkpoint):
        return source
    if not isinstance(source, Mapping):
        return stack.enter_context(open_checkpoint(os.fspath(source)))
    options = dict(source)
    for key in options:
        if key not in _OPTIONS:
            raise ConfigError(f"input {source!r}: there is no key {key!r}{did_you_mean(str(key), _OPTIONS)}")
    if not isinstance(options.get("path"), (str, os.PathLike)):
        raise ConfigError(f"input {source!r}: path is missing")
    return stack.enter_context(open_checkpoint(**options))


def name_of(path: Path) -> str:
    """What an expert is called when nothing else is said: its file, without the endings of formats."""
    for ending in (PACK_SUFFIX, ".nemo", ".safetensors", ".ckpt", ".pt", ".pth"):
        if path.name.endswith(ending) and path.name != ending:
            return path.name.removesuffix(ending)
    return path.name


def fingerprints(inputs: Sequence[Checkpoint]) -> dict[Path, tuple[int, int, int]]:
    """Size, time of the last change and number of every file, by which a change is noticed.

    Raises:
        CheckpointError: a file is not there any more.
    """
    found = {}
    for path in {path for checkpoint in inputs for path in checkpoint.files}:
        try:
            state = path.stat()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
        found[path] = (state.st_size, state.st_mtime_ns, state.st_ino)
    return found


def check_unchanged(inputs: Sequence[Checkpoint], before: Mapping[Path, tuple[int, int, int]]) -> None:
    """Refuses inputs that another program wrote to while they were read: what was read may be half old, half new.

    Raises:
        CheckpointError: a file is not what :func:`fingerprints` noted.
    """
    for path, state in sorted(fingerprints(inputs).items()):
        if state != before.get(path):
            raise CheckpointError(f"{path}: changed while it was read; nothing was written, run again")


def renamed(checkpoint: Checkpoint, template: Checkpoint) -> Checkpoint:
    """The checkpoint under the template's names, where they differ only by a wrapper's prefix or by tied names.

    What cannot be told to be the same is left as it is; the plan will find it.
    """
    stripped = _without_prefix(checkpoint, template)
    names = dict(stripped)
    owners = {alias: owner for alias, owner in template.ties.items()}
    groups: dict[str, list[str]] = {}
    for alias, owner in owners.items():
        groups.setdefault(owner, [owner]).append(alias)
    for tied in groups.values():
        present = [name for name in tied if name in names]
        for name in tied:  # a format without tied names holds one of them
            if present and name not in names:
                names[name] = names[present[0]]
    return checkpoint if all(a == b for a, b in names.items()) else RenamedCheckpoint(checkpoint, names)


def _without_prefix(checkpoint: Checkpoint, template: Checkpoint) -> Mapping[str, str]:
    """Own names by the names they have in the template, or by themselves."""
    own = list(checkpoint.specs)
    if not own or any(name in template.specs for name in own):
        return {name: name for name in own}
    for add, remove in ((0, 1), (1, 0)):
        for prefix in _prefixes(own if remove else list(template.specs)):
            mapped = {name[len(prefix) :] if remove else prefix * add + name: name for name in own}
            if any(name in template.specs for name in mapped):
                return mapped
    return {name: name for name in own}


def _prefixes(names: Sequence[str]) -> list[str]:
    """Wrappers' prefixes, and several in a row, that all names have."""
    found, prefix = [], ""
    while (
        longer := next((p for p in _PREFIXES if all(name.startswith(prefix + p) for name in names)), None)
    ) is not None:
        prefix += longer
        found.append(prefix)
    return found


class RenamedCheckpoint(Checkpoint):
    """A checkpoint whose tensors have other names.

    Args:
        inner: the checkpoint.
        names: its own name for every name; a name may stand for the same tensor as another.
    """

    def __init__(self, inner: Checkpoint, names: Mapping[str, str]) -> None:
        self.inner, self._names = inner, dict(names)
        self.path: Path = inner.path
        self.format = inner.format  # type: ignore[misc]
        self.specs: Mapping[str, TensorSpec] = {name: inner.specs[own] for name, own in names.items()}
        self.metadata: Metadata = inner.metadata
        owners: dict[str, str] = {}
        self.ties = {}
        for name, own in names.items():
            first = owners.setdefault(inner.ties.get(own, own), name)
            if first != name:
                self.ties[name] = first

    def __getitem__(self, name: str) -> Tensor:
        return self.inner[self._names[name]]

    @property
    def files(self) -> list[Path]:
        return self.inner.files

    @property
    def details(self) -> Mapping[str, Any]:
        return self.inner.details

    def vocabulary(self) -> Vocabulary | None:
        return self.inner.vocabulary()

    def artefact(self, name: str) -> bytes:
        return self.inner.artefact(name)

    def close(self) -> None:
        self.inner.close()
