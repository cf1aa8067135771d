"""Keeps a ``.nemo`` loadable by stock NeMo while adapters are inside the model."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from .attachment import adapter_layers, merge_layers
from .instance_method import InstanceMethod


class PlainSaving(InstanceMethod):
    """A model's ``save_to``, with the names of its weights as if no adapter had ever been there.

    Whatever saves the model through ``save_to`` gets such a file: scripts, ``exp_manager``'s checkpoints, uploads. The
    model in memory keeps its adapters.

    Args:
        model: a NeMo model.
        merge: whether the file has the active adapters' change in its weights, or the base's weights.
    """

    def __init__(self, model: Any, merge: bool) -> None:
        super().__init__(model, "save_to")
        self.merge = merge

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        state_dict = _PlainStateDict(self.owner, self.merge)
        try:
            return self.original(*args, **kwargs)
        finally:
            state_dict.remove()


class _PlainStateDict(InstanceMethod):
    def __init__(self, model: Any, merge: bool) -> None:
        super().__init__(model, "state_dict")
        self.merge = merge

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return plain_state_dict(self.owner, self.merge, self.original(*args, **kwargs))


def plain_state_dict(model: nn.Module, merge: bool, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The state dict of a model without adapters: with the change of the active ones in the weights, or without it.

    The model is not touched: bit by bit, merging and unmerging in place does not give back what was there.

    Args:
        model: a model with adapters.
        merge: whether to merge.
        state: its state dict, if that is known.

    Raises:
        MergeError: an adapter is not finite.
    """
    state = model.state_dict() if state is None else state
    changed: dict[str, Tensor] = {}
    layers = dict(adapter_layers(model))
    for name, layer in layers.items():
        apart = copy.deepcopy(layer)
        if merge:
            merge_layers({name: apart})
        elif apart.merged:
            apart.unmerge()
        changed |= {_join(name, key): value for key, value in apart.get_base_layer().state_dict().items()}
    plain: dict[str, Tensor] = OrderedDict()
    for key, value in state.items():
        owner = next((name for name in _prefixes(key) if name in layers), None)
        if owner is None:
            plain[key] = value
        elif key.startswith(before := _join(owner, "base_layer.")):
            own = _join(owner, key.removeprefix(before))
            plain[own] = changed[own]
    return plain


def _prefixes(key: str) -> list[str]:
    words = key.split(".")
    return [".".join(words[:count]) for count in range(len(words))]


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
