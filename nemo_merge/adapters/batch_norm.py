"""Keeps the statistics of batch normalisation still while what surrounds it is frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass
class StillHandle:
    """What lets the statistics move again."""

    hooks: list[Any] = field(default_factory=list)

    def remove(self) -> None:
        """Takes the hooks off; a second call does nothing."""
        while self.hooks:
            self.hooks.pop().remove()


def still_batch_norm(module: nn.Module) -> StillHandle:
    """Makes every batch normalisation in a module use its stored statistics, and leave them alone, while it is frozen.

    An adapter holds no statistics: if they moved in training, the base with the adapter would not be the model that was
    trained. ``eval()`` alone does not help, since trainers call ``train()`` on the whole model again and again. Here
    the mode is switched around each forward pass, so it does not matter who calls what. A layer whose own scale and
    shift are being trained normalises as usual, also if they are unfrozen later.

    Args:
        module: a model or a part of it.

    Returns:
        A handle whose ``remove()`` ends it.
    """
    hooks = []
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.track_running_stats:
            hooks.append(layer.register_forward_pre_hook(_still))
            hooks.append(layer.register_forward_hook(_as_before, always_call=True))
    return StillHandle(hooks)


def _still(layer: nn.Module, args: Any) -> None:
    layer._mode_outside = layer.training  # type: ignore[assignment]
    if not any(parameter.requires_grad for parameter in layer.parameters(recurse=False)):
        layer.training = False


def _as_before(layer: nn.Module, args: Any, output: Any) -> None:
    layer.training = bool(layer._mode_outside)
