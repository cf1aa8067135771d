"""The methods by name."""

from __future__ import annotations

import functools
import logging
from importlib.metadata import entry_points
from typing import Any, TypeVar

from ..errors import ConfigError, did_you_mean
from ._method import Method
from ._parameters import parameters

logger = logging.getLogger("nemo_merge")

_REGISTRY: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


def register(cls: M) -> M:
    """Class decorator that makes a method known by its name.

    Raises:
        ValueError: another method has that name.
    """
    if _REGISTRY.setdefault(cls.name, cls) is not cls:
        raise ValueError(f"there is already a method called {cls.name!r}")
    return cls


@functools.cache
def load_plugins() -> None:
    """Imports the methods that other packages announce under the entry point ``nemo_merge.methods``.

    A plug-in that cannot be imported is named in a warning and left out; it must not stand in the way of a merge.
    """
    for point in entry_points(group="nemo_merge.methods"):
        try:
            point.load()  # registers what it defines
        except Exception as error:  # whatever a stranger's module raises
            logger.warning("the plug-in %s (%s) cannot be loaded: %s", point.name, point.value, error)


def names() -> list[str]:
    """Names of all methods, those of plug-ins included, in alphabetical order."""
    load_plugins()
    return sorted(_REGISTRY)


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        ConfigError: there is no such method; the message suggests one that is spelt alike.
    """
    if name not in _REGISTRY:
        load_plugins()
    if name not in _REGISTRY:
        raise ConfigError(f"there is no merging method {name!r}{did_you_mean(name, _REGISTRY)}")
    return _REGISTRY[name]


def get(name: str, **values: Any) -> Method:
    """A method by name with the given parameters.

    Example:
        >>> get("ties", density=0.3, scale=0.8).density
        0.3

    Raises:
        ConfigError: no such method or parameter, or a value out of range.
    """
    cls = method_class(name)
    known = {item.name: item for item in parameters(cls)}
    for key in values:
        if key not in known:
            raise ConfigError(f"the method {name!r} has no parameter {key!r}{did_you_mean(key, known)}")
    if isinstance(values.get("weights"), (str, float, int)):
        raise ConfigError(f"{name}: weights={values['weights']!r} is not a list of numbers, one per expert")
    if values.get("weights") is not None:
        values["weights"] = tuple(values["weights"])
    return cls(**values)
