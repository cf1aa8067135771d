"""What stands beside an adapter of Bayesian LoRA: ``bayesian_lora.json``, how it was trained."""

from __future__ import annotations

import math
from pathlib import Path

from ..errors import CheckpointError
from ._peft_config import read_json

SIDECAR = "bayesian_lora.json"


def read_prior_scale(path: Path) -> float | None:
    """Standard deviation of the prior of the factors' entries; None where the file does not say it, or does not exist.

    Raises:
        CheckpointError: the file is damaged, or the scale is no positive number.
    """
    if not path.is_file():
        return None
    scale = read_json(path).get("prior_scale")
    if scale is None:
        return None
    if not isinstance(scale, (int, float)) or isinstance(scale, bool) or not (scale > 0 and math.isfinite(scale)):
        raise CheckpointError(f"{path}: prior_scale={scale!r} is not a positive number")
    return float(scale)
