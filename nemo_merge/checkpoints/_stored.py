"""State dicts inside files of ``torch.save``: where they are, which names are tied, and checkpoints made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ._checkpoint import Checkpoint
from ._torch_zip import StoredTensor, TorchZip

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network")
"""Keys under which training programs keep the state dict beside other things, in the order in which they are tried."""

AVERAGES = ("state_dict_ema", "ema_state_dict", "model_ema", "model_ema_state_dict", "ema_model", "ema", "model_avg")
"""Keys under which they keep averaged weights."""

_EXTRA_STATE = "_extra_state"
_MAX_NESTING = 8


class StoredCheckpoint(Checkpoint):
    """A checkpoint whose tensors are in one file of ``torch.save``."""

    _zip: TorchZip
    _stored: Mapping[str, StoredTensor]

    def __getitem__(self, name: str) -> Tensor:
        return self._zip.read(self._stored[name])

    def _take(self, stored: Mapping[str, StoredTensor]) -> None:
        self._zip.check_all(stored)
        self._stored = stored
        self.ties = ties_of(stored)
        self.specs = {name: tensor.spec for name, tensor in stored.items()}


@dataclass(frozen=True)
class StateDict:
    """A state dict that was found.

    Attributes:
        where: keys that lead to it; none if the file is the state dict.
        tensors: its tensors, by name; the names of nested dictionaries are joined by dots.
        paths: keys that lead from it to each tensor.
        shown: how messages call it.
    """

    where: tuple[str, ...]
    tensors: Mapping[str, StoredTensor]
    paths: Mapping[str, tuple[str, ...]]
    shown: str


def ties_of(stored: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Names that share all data of another, with that one."""
    owners: dict[StoredTensor, str] = {}
    return {name: owner for name, tensor in stored.items() if (owner := owners.setdefault(tensor, name)) != name}


def plain_state_dict(content: Any, shown: str) -> dict[str, StoredTensor]:
    """The content of a file that must be a plain state dict.

    Raises:
        CheckpointError: it is something else.
    """
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, StoredTensor) for name, value in content.items()
    ):
        raise CheckpointError(f"{shown}: is not a state dict")
    return dict(content)


def find_state_dict(content: Any, shown: str) -> StateDict:
    """The state dict of a file: the file itself, or what stands under one of :data:`WRAPPERS`.

    Args:
        content: what was saved.
        shown: how messages call the file.

    Raises:
        CheckpointError: there is none, or more than one, with what was found instead.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{shown}: holds {describe(content)} instead of a state dict; {_REMEDY}")
    candidates = [key for key in WRAPPERS if _holds_tensors(content.get(key))]
    if candidates:
        key = candidates[0]
        others = [
            str(name)
            for name, value in content.items()
            if name != key and name not in AVERAGES and _holds_tensors(value) and _flat(value)
        ]
        if key == "state_dict":  # Lightning's; what stands beside it there is never part of the model
            others = [name for name in others if name in WRAPPERS]
        if others:
            raise CheckpointError(
                f"{shown}: holds several state dicts ({', '.join([key, *others])}); save the one to be merged alone"
            )
        return as_state_dict(content[key], (key,), shown)
    if not content:
        raise CheckpointError(f"{shown}: is empty")
    if not _holds_tensors(content):
        parts = ", ".join(f"{key!r} ({describe(value)})" for key, value in list(content.items())[:8])
        raise CheckpointError(
            f"{shown}: no state dict found, neither the file itself nor under {', '.join(WRAPPERS)}; "
            f"it holds {parts}{', ...' if len(content) > 8 else ''}. {_REMEDY}"
        )
    return as_state_dict(content, (), shown)


_REMEDY = "load it with the program that wrote it and save model.state_dict() with torch.save"


def as_state_dict(node: Mapping[str, Any], where: tuple[str, ...], shown: str) -> StateDict:
    """The tensors of a mapping that is known to be a state dict.

    Raises:
        CheckpointError: an entry is no tensor.
    """
    tensors: dict[str, StoredTensor] = {}
    paths: dict[str, tuple[str, ...]] = {}
    for path, value in _leaves(node):
        name = ".".join(map(str, path))
        if isinstance(value, StoredTensor) and name not in tensors:
            tensors[name], paths[name] = value, path
        elif not name.endswith(_EXTRA_STATE):  # what modules keep beside tensors; it is carried over as it is
            raise CheckpointError(f"{shown}: entry {name!r} of its state dict is {describe(value)}, not a tensor")
    return StateDict(where, tensors, paths, shown)


def describe(value: Any) -> str:
    """What an object is, in a few words."""
    if isinstance(value, Mapping):
        return f"a dictionary of {len(value)}"
    if isinstance(value, (list, tuple)) and not isinstance(value, StoredTensor):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, (str, int, float, bool)) or value is None:
        return repr(value)[:40]
    return getattr(value, "path", None) or {"StoredTensor": "a tensor"}.get(type(value).__name__, "an object")


def _leaves(node: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and len(path) < _MAX_NESTING and not str(key).endswith(_EXTRA_STATE):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _holds_tensors(node: Any) -> bool:
    """Whether it is a dictionary, perhaps of dictionaries, that holds tensors under names and hardly anything else."""
    if not isinstance(node, Mapping):
        return False
    names = tensors = 0
    for path, value in _leaves(node):
        if not all(isinstance(key, str) for key in path):
            return False
        if not path[-1].endswith(_EXTRA_STATE):
            names += 1
            tensors += isinstance(value, StoredTensor)
    return 0 < names < 2 * tensors


def _flat(node: Mapping[str, Any]) -> bool:
    return all(isinstance(value, StoredTensor) for value in node.values())
