"""Averaged weights (EMA and the like) that training programs keep in their checkpoints, by tensor name.

| program | where |
| --- | --- |
| NeMo (``nemo.collections.common.callbacks.EMA``) | a sibling ``NAME-EMA.ckpt``, or ``optimizer_states[0]["ema"]``: the parameters in order, without names |
| Lightning ``WeightAveraging`` | ``state_dict`` is the average already, the others are ``current_model_state`` |
| Lightning ``StochasticWeightAveraging`` | ``callbacks[...]["average_model_state"]`` |
| icefall | ``model_avg`` (a running mean over the training so far) |
| others | ``state_dict_ema``, ``ema_state_dict``, ``model_ema``, ``ema`` ... |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import CheckpointError
from ..tensors import NEVER_MERGED, role_of
from ._pickle import Inert
from ._stored import AVERAGES, StateDict, as_state_dict
from ._torch_zip import StoredTensor

_MODULE = "module."  # torch.optim.swa_utils.AveragedModel keeps the model under this name


def averaged(content: Mapping[str, Any], found: StateDict) -> dict[str, StoredTensor]:
    """The state dict with averaged weights in place of the last ones.

    Args:
        content: everything that the file holds.
        found: its state dict.

    Raises:
        CheckpointError: there are no averaged weights, or they cannot be told apart with certainty.
    """
    if "averaging_state" in content and "current_model_state" in content:
        return dict(found.tensors)
    for key in AVERAGES:
        if isinstance(content.get(key), Mapping) and content[key]:
            return _by_name(content[key], key, found)
    for key, callback in _entries(content.get("callbacks")):
        if isinstance(callback, Mapping) and isinstance(callback.get("average_model_state"), Mapping):
            return _by_name(callback["average_model_state"], f"callbacks.{key}.average_model_state", found)
    optimizers = content.get("optimizer_states")
    if isinstance(optimizers, Sequence) and any(isinstance(state, Mapping) and "ema" in state for state in optimizers):
        return _by_order(optimizers, found)
    raise CheckpointError(
        f"{found.shown}: holds no averaged weights (looked for {', '.join(AVERAGES)}, for the states of NeMo's EMA and "
        "of Lightning's averaging callbacks, and for a file NAME-EMA.ckpt beside it); leave out ema=true"
    )


def _entries(node: Any) -> list[tuple[str, Any]]:
    return [(str(key), value) for key, value in node.items()] if isinstance(node, Mapping) else []


def _by_name(node: Mapping[str, Any], where: str, found: StateDict) -> dict[str, StoredTensor]:
    """Averages that have names; buffers may be missing, everything else must be there."""
    if any(str(key).startswith(_MODULE) for key in node) and not any(
        name.startswith(_MODULE) for name in found.tensors
    ):
        node = {key.removeprefix(_MODULE): value for key, value in node.items() if str(key) != "n_averaged"}
    if any(isinstance(value, Inert) for value in node.values()):
        node = {key: value for key, value in node.items() if not isinstance(value, Inert)}
    tensors = as_state_dict(node, (where,), f"{found.shown} ({where})").tensors
    result = {}
    for name, own in found.tensors.items():
        mine = tensors.get(name)
        if mine is None and not _is_buffer(name, own):
            raise CheckpointError(f"{found.shown}: its averaged weights ({where}) lack tensor {name!r}")
        if mine is not None and mine.shape != own.shape:
            raise CheckpointError(
                f"{found.shown}: tensor {name!r} of its averaged weights ({where}) is {list(mine.shape)} "
                f"instead of {list(own.shape)}"
            )
        result[name] = mine or own
    if unknown := [name for name in tensors if name not in found.tensors]:
        raise CheckpointError(
            f"{found.shown}: its averaged weights ({where}) hold tensor {unknown[0]!r}, which the model has not"
        )
    return result


def _by_order(optimizers: Sequence[Any], found: StateDict) -> dict[str, StoredTensor]:
    """NeMo's averages: one per parameter of the optimizer, in order, without names.

    The optimizer of a model without groups of its own holds ``model.parameters()``, which come in the order of the
    state dict, tied ones once, without buffers. Both the number and all shapes must fit.
    """
    where = 'optimizer_states[0]["ema"]'
    unsure = f"{found.shown}: its averaged weights ({where}) have no names and cannot be assigned with certainty"
    if len(optimizers) != 1:
        raise CheckpointError(f"{unsure}: there are {len(optimizers)} optimizers")
    inner = optimizers[0].get("opt")
    groups = inner.get("param_groups") if isinstance(inner, Mapping) else None
    if isinstance(groups, Sequence) and len(groups) != 1:
        raise CheckpointError(f"{unsure}: the optimizer has {len(groups)} groups of parameters")
    averages = optimizers[0]["ema"]
    if not isinstance(averages, Sequence) or not all(isinstance(value, StoredTensor) for value in averages):
        raise CheckpointError(f"{unsure}: they are not a list of tensors")
    owners: dict[StoredTensor, str] = {}
    for name, own in found.tensors.items():
        if not _is_buffer(name, own):
            owners.setdefault(own, name)
    if len(owners) != len(averages):
        raise CheckpointError(f"{unsure}: there are {len(averages)}, but the model has {len(owners)} parameters")
    for (own, name), average in zip(owners.items(), averages, strict=True):
        if own.shape != average.shape:
            raise CheckpointError(
                f"{unsure}: the shape {list(average.shape)} stands where {name!r} has {list(own.shape)}"
            )
    replaced = dict(zip(owners, averages, strict=True))
    return {name: replaced.get(own, own) for name, own in found.tensors.items()}


def _is_buffer(name: str, tensor: StoredTensor) -> bool:
    return role_of(name, tensor.shape, tensor.dtype) in NEVER_MERGED
