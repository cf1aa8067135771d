"""Reads the settings of a merge from a YAML file and from overrides in Hydra's grammar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from ..methods import Method


@dataclass
class MergeSettings:
    """The settings of a merge beside the method's own; the same words as the arguments of ``nemo_merge.merge``."""

    base: str | None = None
    experts: list[Any] = field(default_factory=list)
    output: str | None = None
    overwrite: bool = False
    rules: list[Any] = field(default_factory=list)
    then: list[Any] = field(default_factory=list)
    batch_norm: str = "average"
    audio: Any = None
    dtype: str | None = None
    vocabulary: str = "strict"
    device: str = "cpu"
    workers: int | None = None
    as_adapter: Any = None

    def plan_options(self) -> dict[str, Any]:
        """Keyword arguments of :func:`~nemo_merge.merging.plan_merge`."""
        names = ("rules", "then", "batch_norm", "audio", "dtype", "vocabulary", "device", "workers")
        return {name: getattr(self, name) for name in names}

    def merge_options(self) -> dict[str, Any]:
        """Keyword arguments of :func:`~nemo_merge.merging.merge` beside the output and the method's parameters."""
        return {"overwrite": self.overwrite, **self.plan_options()}


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


Settings = TypeVar("Settings", MergeSettings, AnalyzeSettings)


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
    return settings_of(plain_settings(arguments, grid), grid)


def settings_of(plain: dict[str, Any], grid: dict[str, list[Any]] | None = None) -> tuple[MergeSettings, Method]:
    """Settings and method from plain data, as a file and overrides give it; arguments and errors as :func:`compose`."""
    method = _method(plain.pop("method", "boosted_tsvm"))
    if grid is not None:
        _read_grid(plain.pop("grid", {}), grid)
    known = [item.name for item in fields(MergeSettings)]
    for key in plain:
        if key not in known:
            raise ConfigError(f"there is no setting {key!r}{_suggest(str(key), [*known, 'method'], method)}")
    return _typed(plain, MergeSettings), method


def compose_plain(arguments: Sequence[str], schema: type[Settings]) -> Settings:
    """Settings of a verb that takes no method, from ``[CONFIG.yaml] [KEY=VALUE]...``; errors as by :func:`compose`."""
    plain = plain_settings(arguments, None)
    known = [item.name for item in fields(schema)]
    for key in plain:
        if key not in known:
            raise ConfigError(f"there is no setting {key!r}{did_you_mean(str(key), known)}")
    return _typed(plain, schema)


def plain_settings(arguments: Sequence[str], grid: dict[str, list[Any]] | None = None) -> dict[str, Any]:
    """The settings of file and overrides as plain data; arguments and errors as :func:`compose`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

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
    with _explained():
        plain = OmegaConf.to_container(OmegaConf.create(config), resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _typed(plain: dict[str, Any], schema: type[Settings]) -> Settings:
    from omegaconf import OmegaConf

    if isinstance(plain.get("experts"), str):
        plain["experts"] = [plain["experts"]]
    with _explained():
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), plain))
    assert isinstance(settings, schema)
    return settings


@contextmanager
def _explained() -> Iterator[None]:
    """Turns OmegaConf's errors into one sentence."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except OmegaConfBaseException as error:
        place = getattr(error, "full_key", None)
        raise ConfigError(f"{f'{place}: ' if place else ''}{str(error).splitlines()[0]}") from error


def read_file(arguments: Sequence[str]) -> tuple[dict[str, Any], Sequence[str]]:
    """The settings of the YAML file that comes first, if one does, and the remaining arguments."""
    if not arguments or "=" in arguments[0] or arguments[0].startswith(("+", "~")):
        return {}, arguments
    path = Path(arguments[0])
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file (settings are written KEY=VALUE)") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({error})") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: not a mapping of settings")
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


def _read_grid(values: Any, grid: dict[str, list[Any]]) -> None:
    """Adds the grid of a file; values of the command line win."""
    if not isinstance(values, dict):
        raise ConfigError(f"grid={values!r} is not a mapping from parameters to lists of values")
    for key, choices in values.items():
        grid.setdefault(str(key), choices if isinstance(choices, list) else [choices])


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


def _method(values: Any) -> Method:
    from .. import methods

    if isinstance(values, str):
        values = {"name": values}
    if not isinstance(values, dict):
        raise ConfigError(f"method={values!r} is neither a name nor a mapping with a name")
    return methods.get(values.pop("name", "boosted_tsvm"), **values)


def _suggest(key: str, known: Sequence[str], method: Method) -> str:
    from ..methods import parameters

    own = [item.name for item in parameters(type(method))]
    close = get_close_matches(key, [*own, *known], n=1, cutoff=0.6)
    if close and close[0] in own:
        return f"; did you mean 'method.{close[0]}'?"
    return did_you_mean(key, known)
