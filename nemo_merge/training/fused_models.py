"""Models that hear through fused encoders, which NeMo builds and restores only where this package says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import register
from ..checkpoints import open_checkpoint
from ..errors import ConfigError


def accept_fused(path: Path) -> None:
    """Registers this package's classes with NeMo if a model needs them, before it is restored.

    Raises:
        CheckpointError: the file cannot be read.
    """
    with open_checkpoint(path) as checkpoint:
        accept_fused_configuration(checkpoint.metadata.config)


def accept_fused_configuration(config: Mapping[str, Any]) -> None:
    """Registers this package's classes with NeMo if a configuration needs them, before a model is built from it."""
    if _fused(config) is not None:
        register()


def encoder_records(config: Mapping[str, Any]) -> list[Any]:
    """What tells the encoders that a configuration takes from elsewhere: digests of files, records of merges.

    Raises:
        ConfigError, CheckpointError: one cannot be taken.
    """
    preprocessor = _fused(config)
    if preprocessor is None:
        return []
    from ..fusion.sources import describe

    return [describe(entry).get("provenance") for entry in preprocessor.get("upstreams") or ()]


def _fused(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The preprocessor of a configuration, if it is of fused encoders."""
    found = config.get("preprocessor")
    if isinstance(found, Mapping) and str(found.get("_target_")).startswith("nemo_merge.fusion."):
        return found
    return None


def take_cache(recogniser: Any, folder: Path, name: str) -> None:
    """Lets a model that was restored take the hidden layers of its encoders from a cache.

    Raises:
        ConfigError: it does not stand on fused encoders, or the cache is of others.
    """
    preprocessor: Any = getattr(getattr(recogniser, "model", None), "preprocessor", None)
    if not hasattr(preprocessor, "use_cache"):
        raise ConfigError(f"{name}: does not stand on fused encoders, whose hidden layers a cache holds")
    preprocessor.use_cache(folder)
