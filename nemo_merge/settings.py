"""The settings of a merge as plain data, from YAML files, mappings and OmegaConf; the method among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from .methods import Method

T = TypeVar("T")


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


def settings_of(plain: dict[str, Any], grid: dict[str, list[Any]] | None = None) -> tuple[MergeSettings, Method]:
    """Settings and method from plain data, as a file and overrides give it.

    Args:
        plain: the settings; ``method`` is a name or a mapping with a name and parameters.
        grid: takes the values of a ``grid`` among them; without it there must be none.

    Raises:
        ConfigError: a key or method that does not exist (with a suggestion), or a value of the wrong type.
    """
    method = _method(plain.pop("method", "boosted_tsvm"))
    if grid is not None:
        _read_grid(plain.pop("grid", {}), grid)
    known = [item.name for item in fields(MergeSettings)]
    for key in plain:
        if key not in known:
            raise ConfigError(f"there is no setting {key!r}{_suggest(str(key), [*known, 'method'], method)}")
    return typed(plain, MergeSettings), method


def plain_settings(config: Any) -> dict[str, Any]:
    """Settings as plain data, interpolations resolved.

    Args:
        config: a mapping, perhaps OmegaConf's.

    Raises:
        ConfigError: an interpolation that leads nowhere, or a value that is still to be given.
    """
    from omegaconf import OmegaConf

    with _explained():
        config = config if OmegaConf.is_config(config) else OmegaConf.create(config)
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def typed(plain: dict[str, Any], schema: type[T]) -> T:
    """Settings of a dataclass from plain data.

    Raises:
        ConfigError: a value of the wrong type.
    """
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


def read_yaml(path: Path, hint: str = "") -> dict[str, Any]:
    """The settings of a YAML file as it stands; ``hint`` is what to say beside "no such file".

    Raises:
        ConfigError: it is missing, no YAML, or not a mapping.
    """
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file{hint}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({error})") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: not a mapping of settings")
    return config


def _read_grid(values: Any, grid: dict[str, list[Any]]) -> None:
    """Adds the grid of a file; values of the command line win."""
    if not isinstance(values, dict):
        raise ConfigError(f"grid={values!r} is not a mapping from parameters to lists of values")
    for key, choices in values.items():
        grid.setdefault(str(key), choices if isinstance(choices, list) else [choices])


def _method(values: Any) -> Method:
    from . import methods

    if isinstance(values, str):
        values = {"name": values}
    if not isinstance(values, dict):
        raise ConfigError(f"method={values!r} is neither a name nor a mapping with a name")
    return methods.get(values.pop("name", "boosted_tsvm"), **values)


def _suggest(key: str, known: Sequence[str], method: Method) -> str:
    from .methods import parameters

    own = [item.name for item in parameters(type(method))]
    close = get_close_matches(key, [*own, *known], n=1, cutoff=0.6)
    if close and close[0] in own:
        return f"; did you mean 'method.{close[0]}'?"
    return did_you_mean(key, known)
