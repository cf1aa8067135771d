"""Reads settings from a YAML file and from overrides in Hydra's grammar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, did_you_mean
from ..settings import MergeSettings, plain_settings, read_yaml, settings_of, typed

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from ..methods import Method


@dataclass
class AnalyzeSettings:
    """The settings of an analysis; the same words as the arguments of ``nemo_merge.analyze``."""

    base: str | None = None
    experts: list[str] = field(default_factory=list)
    output: str | None = None
    overwrite: bool = False
    top: int = 20
    rank: float | None = None
    pictures: bool = True
    workers: int | None = None


def compose(arguments: Sequence[str], grid: dict[str, list[Any]] | None = None) -> tuple[MergeSettings, Method]:
    """Settings and method from ``[CONFIG.yaml] [KEY=VALUE]...``.

    ``method=NAME`` chooses a method and forgets parameters set for another one before; ``method.KEY=VALUE`` sets a
    parameter. ``+KEY=VALUE`` and ``~KEY`` add and remove as in Hydra.

    Args:
        arguments: what stands on the command line.
        grid: takes the parameters of the method that have several values (``method.KEY=A,B``, or ``grid`` in the
            file); without it several values are refused.

    Raises:
        ConfigError: a key or method that does not exist (with a suggestion), a value of the wrong type, a bad file.
    """
    return settings_of(given_settings(arguments, grid), grid)


def compose_plain(arguments: Sequence[str], schema: type[AnalyzeSettings]) -> AnalyzeSettings:
    """Settings of a verb that takes no method, from ``[CONFIG.yaml] [KEY=VALUE]...``; errors as by :func:`compose`."""
    plain = given_settings(arguments)
    known = [item.name for item in fields(schema)]
    for key in plain:
        if key not in known:
            raise ConfigError(f"there is no setting {key!r}{did_you_mean(str(key), known)}")
    return typed(plain, schema)


def given_settings(arguments: Sequence[str], grid: dict[str, list[Any]] | None = None) -> dict[str, Any]:
    """The settings of file and overrides as plain data; arguments and errors as :func:`compose`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    config, rest = read_file(arguments)
    try:
        overrides = OverridesParser.create().parse_overrides(list(rest))
    except HydraException as error:
        raise ConfigError(
            f"{str(error).splitlines()[0]} (write KEY=VALUE, and quote values with special characters)"
        ) from error
    for override in overrides:
        if override.is_sweep_override():
            _add_to_grid(grid, override)
            continue
        _set(config, override.key_or_group, override.value(), remove=override.is_delete())
    return plain_settings(config)


def read_file(arguments: Sequence[str]) -> tuple[dict[str, Any], Sequence[str]]:
    """The settings of the YAML file that comes first, if one does, and the remaining arguments."""
    if not arguments or "=" in arguments[0] or arguments[0].startswith(("+", "~")):
        return {}, arguments
    config = read_yaml(Path(arguments[0]), " (settings are written KEY=VALUE)")
    if isinstance(config.get("method"), str):
        config["method"] = {"name": config["method"]}
    return config, arguments[1:]


def _add_to_grid(grid: dict[str, list[Any]] | None, override: Override) -> None:
    prefix, _, key = override.key_or_group.partition(".")
    if grid is None:
        raise ConfigError(f"{override.input_line}: several values; nemo-merge sweep merges once for each")
    if prefix != "method" or not key:
        raise ConfigError(f"{override.input_line}: only parameters of the method may have several values")
    grid[key] = list(override.sweep_iterator())


def _set(config: dict[str, Any], key: str, value: Any, *, remove: bool) -> None:
    if key == "method" and isinstance(value, str):
        value = {"name": value}
    *parents, last = key.split(".")
    node = config
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{key}: {parent!r} is a value, not a group of settings")
        node = child
    if remove:
        if last not in node:
            raise ConfigError(f"~{key}: there is nothing to remove")
        del node[last]
    else:
        node[last] = value
