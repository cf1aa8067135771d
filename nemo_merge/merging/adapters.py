"""Adapters among the inputs of a merge: each is bound to the base and is an expert like any other then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import AdapterCheckpoint, Checkpoint, NemoCheckpoint, PackCheckpoint
from ..checkpoints.nemo_adapter import (
    NemoAdapterCheckpoint,
    NemoWithAdapters,
    OverlaidCheckpoint,
    adapter_configs,
    adapter_of,
)
from ..errors import PlanError

_BOUND = (AdapterCheckpoint, PackCheckpoint)
"""What changes the base's own tensors; NeMo's adapters bring others."""


def bind_adapters(base: Checkpoint | None, experts: Sequence[Checkpoint]) -> tuple[Checkpoint | None, list[Checkpoint]]:
    """Base and experts, with every adapter bound to the base.

    PEFT adapters become the base with changed weights. NeMo's adapters bring tensors of their own: the base is given
    them too, as the mean of the experts that have them, which is also what experts without them count as.

    Raises:
        PlanError: there is no base to bind an adapter to, the base itself is an adapter, or NeMo adapters do not fit
            each other or the base.
        CheckpointError: an adapter does not fit the base.
    """
    kinds = (*_BOUND, NemoAdapterCheckpoint)
    if isinstance(base, kinds):
        raise PlanError([f"{base.path}: is {_called(base)}; pass the model that it was trained on as base="])
    if base is None:
        adapters = [expert for expert in experts if isinstance(expert, kinds)]
        if adapters:
            raise PlanError(
                [f"{item.path}: is {_called(item)}, which changes a base; pass it with base=" for item in adapters]
            )
        return None, list(experts)
    if any(_carries_modules(expert, base) for expert in experts):
        base, experts = _bind_modules(base, experts)
    return base, [expert.bind(base) if isinstance(expert, _BOUND) else expert for expert in experts]


def _called(checkpoint: Checkpoint) -> str:
    return "an expert pack" if isinstance(checkpoint, PackCheckpoint) else "an adapter"


def _carries_modules(expert: Checkpoint, base: Checkpoint) -> bool:
    """Whether an expert has adapter modules that the base lacks, or nothing else."""
    return isinstance(expert, NemoAdapterCheckpoint) or (
        isinstance(expert, NemoCheckpoint) and any(adapter_of(name) and name not in base.specs for name in expert.specs)
    )


def _bind_modules(base: Checkpoint, experts: Sequence[Checkpoint]) -> tuple[Checkpoint, list[Checkpoint]]:
    """Gives base and experts the adapter modules that any expert has."""
    holders = [expert for expert in experts if _carries_modules(expert, base)]
    if not isinstance(base, NemoCheckpoint):
        raise PlanError(
            [f"{holders[0].path}: holds NeMo adapters, but {base.path} is no .nemo file; pass one as base="]
        )
    problems = _compare_modules(base, holders)
    if problems:
        raise PlanError(problems)
    held = {expert.path: [name for name in expert.specs if adapter_of(name)] for expert in holders}
    added = dict.fromkeys(name for names in held.values() for name in names if name not in base.specs)
    means = {name: _mean([expert[name] for expert in holders if name in expert.specs]) for name in added}
    template: NemoCheckpoint = base
    if added:
        template = NemoWithAdapters(base, means, _merged_configs(holders), _encoder_class(holders))

    def overlaid(expert: Checkpoint) -> Checkpoint:
        if isinstance(expert, NemoAdapterCheckpoint):
            return OverlaidCheckpoint(template, {name: expert[name] for name in expert.specs}, expert)
        if isinstance(expert, _BOUND):
            return expert
        missing = {name: mean for name, mean in means.items() if name not in expert.specs}
        return OverlaidCheckpoint(expert, missing) if missing else expert

    return template, [overlaid(expert) for expert in experts]


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(tensors[0].dtype)


def _compare_modules(base: NemoCheckpoint, holders: Sequence[Checkpoint]) -> list[str]:
    """What stands against merging adapter modules: other names, settings, shapes or depths."""
    problems = []
    layers = len({name.split(".")[2] for name in base.specs if name.startswith("encoder.layers.")})
    first: dict[str, tuple[Checkpoint, dict[str, Any]]] = {}
    shapes: dict[str, tuple[Checkpoint, tuple[int, ...]]] = {}
    for expert in holders:
        if isinstance(expert, NemoAdapterCheckpoint) and expert.layers != layers:
            problems.append(
                f"{expert.path}: adapts {expert.layers} layers, but {base.path} has {layers} in its encoder"
            )
        for name, config in _configs(expert).items():
            earlier, settings = first.setdefault(name, (expert, _settings(config)))
            if _settings(config) != settings:
                problems.append(
                    f"{expert.path}: its adapter {name!r} has other settings than that of {earlier.path}; only "
                    "adapters of one type and size merge"
                )
        for name in expert.specs:
            if adapter_of(name) is None:
                continue
            same, shape = shapes.setdefault(name, (expert, expert.specs[name].shape))
            if shape != expert.specs[name].shape:
                problems.append(f"{expert.path}: tensor {name!r} has another shape than in {same.path}")
    names = [frozenset(filter(None, map(adapter_of, expert.specs))) for expert in holders]
    if len(set(names)) > 1:
        said = "; ".join(
            f"{expert.path}: {', '.join(sorted(some))}" for expert, some in zip(holders, names, strict=True)
        )
        problems.append(
            f"adapters are merged by name, but the experts' have different ones ({said}); side by side they would "
            "run one "
            "after the other, which none of them was trained for: give them one name in NeMo (add_adapter(name=...))"
        )
    return problems


def _configs(expert: Checkpoint) -> dict[str, Any]:
    return adapter_configs(expert.metadata.config)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what an adapter computes."""
    return {key: value for key, value in config.items() if key not in ("enabled", "dropout", "adapter_strategy")}


def _merged_configs(holders: Sequence[Checkpoint]) -> dict[str, Any]:
    """One configuration per adapter: the first expert's, enabled if it is in any."""
    merged: dict[str, Any] = {}
    for expert in holders:
        for name, config in _configs(expert).items():
            entry = merged.setdefault(name, dict(config))
            entry["enabled"] = bool(entry.get("enabled", True) or config.get("enabled", True))
    return merged


def _encoder_class(holders: Sequence[Checkpoint]) -> str | None:
    """The class of encoder with which an expert's model is restored."""
    for expert in holders:
        encoder = expert.metadata.config.get("encoder")
        if isinstance(encoder, Mapping) and isinstance(encoder.get("_target_"), str):
            return str(encoder["_target_"])
    return None
