"""What an adapter does to each layer, in numbers."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..low_rank import LowRank, compress
from .attachment import adapter_layers, the_adapter

_ROWS = 1 << 20


@torch.no_grad()
def diagnose(model: nn.Module, tau: float = 1e-3, adapter_name: str | None = None) -> dict[str, dict[str, float]]:
    """Measures an adapter in every linear layer that it is in.

    Args:
        model: the model that it was injected into.
        tau: below which an entry counts as small.
        adapter_name: needed where several are active.

    Returns:
        By module: ``small_a``, ``small_b`` and ``small_delta``, the shares of entries below ``tau`` in absolute value
        in the (mean) factors and in the change ``scaling B A``; ``relative_norm``, the Frobenius norm of the change
        over that of the base's weight; ``stable_rank``, the squared Frobenius norm over the squared spectral norm (0
        for no change); and, for Bayesian adapters, ``log_sigma_a`` and, where B has spreads, ``log_sigma_b``, the
        logarithms of the mean standard deviations.
    """
    name = the_adapter(model, adapter_name)
    rows: dict[str, dict[str, float]] = {}
    for module, layer in adapter_layers(model):
        if name in layer.lora_A and isinstance(layer.get_base_layer(), nn.Linear):
            rows[module] = _measure(layer, name, tau)
    return rows


def _measure(layer: Any, name: str, tau: float) -> dict[str, float]:
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    change = LowRank(b.double() * layer.scaling[name], a.double())
    step = max(1, _ROWS // a.shape[1])
    parts = (change.rows(slice(start, start + step)) for start in range(0, b.shape[0], step))
    small = sum(int((part.abs() < tau).sum()) for part in parts)
    singular = torch.linalg.svdvals(compress([change]).cores[0])
    squared = float(singular.square().sum())
    row = {
        "small_a": _share(a, tau),
        "small_b": _share(b, tau),
        "small_delta": small / (a.shape[1] * b.shape[0]),
        "relative_norm": squared**0.5 / max(float(layer.get_base_layer().weight.double().norm()), 1e-300),
        "stable_rank": squared / float(singular[0]) ** 2 if squared else 0.0,
    }
    for key, part in (("log_sigma_a", "lora_rho_A"), ("log_sigma_b", "lora_rho_B")):
        if name in (rhos := getattr(layer, part, {})):
            row[key] = float(softplus(rhos[name].double()).mean().log())
    return row


def _share(values: Float[Tensor, "*shape"], tau: float) -> float:
    return float((values.abs() < tau).double().mean())
