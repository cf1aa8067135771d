"""Adapters among the inputs of a merge: each is bound to the base and is an expert like any other then."""

from __future__ import annotations

from collections.abc import Sequence

from ..checkpoints import AdapterCheckpoint, Checkpoint
from ..errors import PlanError


def bind_adapters(base: Checkpoint | None, experts: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The experts, with every adapter bound to the base.

    Raises:
        PlanError: there is no base to bind an adapter to, or the base itself is an adapter.
        CheckpointError: an adapter does not fit the base.
    """
    if isinstance(base, AdapterCheckpoint):
        raise PlanError([f"{base.path}: is an adapter; pass the model that it was trained on as base="])
    if base is None and (adapters := [expert for expert in experts if isinstance(expert, AdapterCheckpoint)]):
        raise PlanError(
            [f"{adapter.path}: is an adapter, which changes a base; pass the base with base=" for adapter in adapters]
        )
    return [expert.bind(base) if base and isinstance(expert, AdapterCheckpoint) else expert for expert in experts]
