"""Callbacks from configuration: a YAML file or plain data that names them and gives their settings."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, NemoMergeError, did_you_mean
from ..settings import plain_settings, read_yaml

if TYPE_CHECKING:
    from lightning.pytorch import Callback

CALLBACKS: Mapping[str, tuple[str, str]] = {
    "checkpoint_merge": ("checkpoint_merge_callback", "CheckpointMergeCallback"),
    "continual_merge": ("continual_merge_callback", "ContinualMergeCallback"),
    "merge": ("merge_callback", "MergeCallback"),
    "provenance": ("provenance_callback", "ProvenanceCallback"),
}
"""Module and class of every callback by the name that configurations give it."""


def callbacks_from_file(path: str | os.PathLike[str]) -> list[Callback]:
    """The callbacks of a YAML file with the key ``callbacks``, see :func:`callbacks_from_config`.

    ``${oc.env:NAME}`` and other interpolations of OmegaConf are resolved.

    Raises:
        ConfigError: the file cannot be read, or as :func:`callbacks_from_config`; the message names the file.
    """
    file = Path(path)
    try:
        content = plain_settings(read_yaml(file))
        for key in content:
            if key != "callbacks":
                raise ConfigError(f"there is no key {key!r}{did_you_mean(key, ['callbacks'])}")
        return callbacks_from_config(content.get("callbacks"))
    except NemoMergeError as error:
        message = str(error)
        raise ConfigError(message if message.startswith(str(file)) else f"{file}: {message}") from error


def callbacks_from_config(entries: Any) -> list[Callback]:
    """Builds callbacks.

    For example ``[{"name": "merge", "base": "base.nemo", "output": "merged.nemo"}, "provenance"]``.

    Args:
        entries: a list; every entry is the name of a callback (``merge``, ``checkpoint_merge``, ``continual_merge``,
            ``provenance``) or a mapping with ``name`` and the arguments of its class.

    Returns:
        The callbacks in the same order.

    Raises:
        ConfigError: not such a list, a name or setting that does not exist, one that is missing, or a value that the
            callback refuses.
    """
    if isinstance(entries, (str, Mapping)) or not isinstance(entries, Sequence):
        raise ConfigError(
            f"callbacks={entries!r} is not a list; write '- {{name: merge, ...}}' for each, known: "
            f"{', '.join(CALLBACKS)}"
        )
    return [_build(number, entry) for number, entry in enumerate(entries, 1)]


def _build(number: int, entry: Any) -> Callback:
    settings = {"name": entry} if isinstance(entry, str) else dict(entry) if isinstance(entry, Mapping) else {}
    name = settings.pop("name", None)
    place = f"callback {number}"
    if not isinstance(name, str):
        raise ConfigError(f"{place}: {entry!r} is neither a name nor a mapping with a name")
    if name not in CALLBACKS:
        raise ConfigError(f"{place}: there is no callback {name!r}{did_you_mean(name, CALLBACKS)}")
    module, cls = CALLBACKS[name]
    place = f"{place} ({name})"
    try:
        callback = getattr(importlib.import_module(f".{module}", __package__), cls)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{place}: needs {error.name}, which is not installed") from error
    accepted = inspect.signature(callback).parameters
    named = {key: value for key, value in accepted.items() if value.kind is not value.VAR_KEYWORD}
    other = [str(key) for key in settings if key not in named]
    if other and len(named) == len(accepted):
        raise ConfigError(f"{place}: there is no setting {other[0]!r}{did_you_mean(other[0], named)}")
    missing = [key for key, value in named.items() if value.default is value.empty and key not in settings]
    if missing:
        raise ConfigError(f"{place}: {', '.join(missing)} missing")
    try:
        built: Callback = callback(**settings)
    except (NemoMergeError, TypeError, ValueError) as error:
        raise ConfigError(f"{place}: {error}") from error
    return built
