"""What the merging callbacks are asked to do, checked when they are made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import methods
from ..errors import ConfigError, did_you_mean
from ..merging.ranks import Ranks
from ..methods import Method

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def method_of(method: str | Method | Mapping[str, Any], parameters: Mapping[str, Any], known: Sequence[str]) -> Method:
    """A method from its name, a mapping with ``name`` and parameters, or a finished one.

    Args:
        method: the method.
        parameters: further parameters.
        known: settings of the callback, one of which may have been misspelt.

    Raises:
        ConfigError: no such method, parameter or setting, or a value out of range.
    """
    if isinstance(method, Method):
        if parameters:
            raise ConfigError(f"parameters {sorted(parameters)} cannot be given beside a finished method")
        return method
    values = {"name": method} if isinstance(method, str) else dict(method) if isinstance(method, Mapping) else {}
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"method={method!r} is neither a name nor a mapping with a name")
    own = [item.name for item in methods.parameters(methods.method_class(name))]
    for key in parameters:
        if key not in own:
            raise ConfigError(f"there is no setting {key!r}{did_you_mean(key, [*known, *own])}")
    return methods.get(name, **{**values, **parameters})


def path_of(value: Any, what: str) -> Path:
    """A path that was given as text or path, whatever folder the training changes to."""
    if not isinstance(value, (str, Path)) or not str(value):
        raise ConfigError(f"{what}={value!r} is not a path")
    return Path(value).expanduser().absolute()


def natural(value: Any, what: str) -> int | None:
    """A whole number from 1, or None."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ConfigError(f"{what}={value!r} is not a whole number from 1")


def check_same_on_all_ranks(what: str, settings: Mapping[str, Any], ranks: Ranks) -> None:
    """Refuses processes of one training that were started with other settings.

    Raises:
        ConfigError: on all ranks, naming the settings that differ.
    """
    plain = {key: json.dumps(value, default=_plain, sort_keys=True) for key, value in settings.items()}
    everybody = ranks.all(plain)
    different = sorted(key for key in plain if any(other.get(key) != everybody[0][key] for other in everybody))
    if different:
        key = different[0]
        said = "; ".join(f"rank {rank} has {other.get(key)}" for rank, other in enumerate(everybody))
        raise ConfigError(f"{what}: the ranks have different settings ({', '.join(different)}): {key}: {said}")


def check_whole_model(trainer: Trainer, what: str) -> None:
    """Refuses strategies that spread the weights over the ranks.

    Raises:
        ConfigError: with the remedy.
    """
    from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

    if isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)):
        raise ConfigError(
            f"{what} needs the whole model on every rank, which {type(trainer.strategy).__name__} does not keep; "
            "train with DDP, or merge the saved checkpoints with nemo-merge merge"
        )


def _plain(value: Any) -> str:
    """Text for what JSON does not know: the same for what means the same in another process."""
    if isinstance(value, Path) or (is_dataclass(value) and not isinstance(value, type)):
        return str(value)
    return str(getattr(value, "__qualname__", getattr(value, "path", type(value))))
