"""How far fine-tuning moved the weights."""

from __future__ import annotations

import math
from pathlib import Path

from safetensors import safe_open

from ..checkpoints import open_checkpoint
from ..checkpoints.adapter import MODEL as ADAPTER_WEIGHTS
from ..tensors import Role, role_of

SMALL = 1e-3
_WEIGHTS = (Role.MATRIX, Role.POINTWISE_CONV, Role.CONV, Role.DEPTHWISE_CONV, Role.EMBEDDING, Role.HEAD)


def change_of(model: Path, base: Path) -> dict[str, float]:
    """Size of the change of a model's matrices and convolutions.

    Returns:
        ``relative``: Frobenius norm of the change over that of the base's weights. ``small``: share of the entries of
        tensors that changed which changed by less than :data:`SMALL`; 1 if none changed.
    """
    squares = {"change": 0.0, "base": 0.0}
    small = entries = 0
    with open_checkpoint(model) as new, open_checkpoint(base) as old:
        for name, spec in old.specs.items():
            if role_of(name, spec.shape, spec.dtype) not in _WEIGHTS:
                continue
            before = old[name].double()
            change = new[name].double() - before
            squares["change"] += float(change.square().sum())
            squares["base"] += float(before.square().sum())
            if change.any():
                small += int((change.abs() < SMALL).sum())
                entries += change.numel()
    return {
        "relative": math.sqrt(squares["change"] / squares["base"]),
        "small": small / entries if entries else 1.0,
    }


def small_factors(adapter: Path) -> float:
    """Share of the entries of an adapter's factors, of posterior means where there are any, below :data:`SMALL`."""
    small = entries = 0
    with safe_open(adapter / ADAPTER_WEIGHTS, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            if name.endswith((".lora_A.weight", ".lora_B.weight")):
                values = file.get_tensor(name)
                small += int((values.abs() < SMALL).sum())
                entries += values.numel()
    return small / entries
