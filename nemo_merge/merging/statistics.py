"""How far running statistics of batch normalisation drift between base and experts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ..checkpoints import Checkpoint

EPSILON = 1e-5
"""What batch normalisation itself adds to a variance (PyTorch's default)."""
_MEAN, _VARIANCE = "running_mean", "running_var"


@dataclass(frozen=True)
class Drift:
    """Statistics of one normalisation layer.

    Attributes:
        name: name of the layer.
        shift: root mean square over channels, by expert, of the shift of the mean in standard deviations of the base.
        factor: by expert, the factor by which variances change, as the exponential of the root mean square of their
            logarithm; 1 for no change.
        between: share of the pooled variance that lies between the experts' means, mean over channels: what averaging
            the variances leaves out (law of total variance).
    """

    name: str
    shift: Sequence[float]
    factor: Sequence[float]
    between: float


def drifts(template: Checkpoint, experts: Sequence[Checkpoint], names: Iterable[str]) -> list[Drift]:
    """The drift of every layer whose mean and variance are among ``names``."""
    names = set(names)
    layers = sorted(name.removesuffix(_VARIANCE) for name in names if name.endswith(_VARIANCE))
    return [_drift(layer, template, experts) for layer in layers if f"{layer}{_MEAN}" in names]


def _drift(layer: str, template: Checkpoint, experts: Sequence[Checkpoint]) -> Drift:
    mean, variance = (template[layer + part].double() for part in (_MEAN, _VARIANCE))
    means, variances = (
        torch.stack([expert[layer + part].double() for expert in experts]) for part in (_MEAN, _VARIANCE)
    )
    shift = ((means - mean).square() / (variance + EPSILON)).mean(1).sqrt()
    logarithm = ((variances + EPSILON) / (variance + EPSILON)).log()
    between = means.var(0, correction=0)
    return Drift(
        layer.rstrip("."),
        shift.tolist(),
        logarithm.square().mean(1).sqrt().exp().tolist(),
        float((between / (between + variances.mean(0) + EPSILON)).mean()),
    )
