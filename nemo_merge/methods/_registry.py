"""Methods and post-processors by name."""

from __future__ import annotations

import functools
import logging
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from ..errors import ConfigError, did_you_mean
from ._method import Method
from ._parameters import parameters
from ._post import PostProcessor

logger = logging.getLogger("nemo_merge")

T = TypeVar("T", Method, PostProcessor)
C = TypeVar("C", bound=type[Method] | type[PostProcessor])


class Registry(Generic[T]):
    """Classes of one kind by their name.

    Args:
        kind: what messages call them.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.classes: dict[str, type[T]] = {}

    def add(self, cls: type[T]) -> None:
        """Makes a class known by its name.

        Raises:
            ValueError: another class has that name.
        """
        if self.classes.setdefault(cls.name, cls) is not cls:
            raise ValueError(f"there is already a {self.kind} called {cls.name!r}")

    def names(self) -> list[str]:
        """All names, those of plug-ins included, in alphabetical order."""
        load_plugins()
        return sorted(self.classes)

    def find(self, name: str) -> type[T]:
        """The class of that name.

        Raises:
            ConfigError: there is none; the message suggests one that is spelt alike.
        """
        if name not in self.classes:
            load_plugins()
        if name not in self.classes:
            raise ConfigError(f"there is no {self.kind} {name!r}{did_you_mean(name, self.classes)}")
        return self.classes[name]

    def make(self, name: str, values: dict[str, Any]) -> T:
        """An object of the class of that name with the given parameters.

        Raises:
            ConfigError: there is no such class or parameter, or a value is out of range.
        """
        cls = self.find(name)
        known = [item.name for item in parameters(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"the {self.kind} {name!r} has no parameter {key!r}{did_you_mean(str(key), known)}")
        return cls(**values)


METHODS: Registry[Method] = Registry("merging method")
POSTS: Registry[PostProcessor] = Registry("post-processor")


def register(cls: C) -> C:
    """Class decorator that makes a method or post-processor known by its name.

    Raises:
        ValueError: another one has that name.
    """
    if issubclass(cls, PostProcessor):
        POSTS.add(cls)
    else:
        METHODS.add(cls)
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
    return METHODS.names()


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        ConfigError: there is no such method; the message suggests one that is spelt alike.
    """
    return METHODS.find(name)


def get(name: str, **values: Any) -> Method:
    """A method by name with the given parameters.

    Example:
        >>> get("ties", density=0.3, scale=0.8).density
        0.3

    Raises:
        ConfigError: no such method or parameter, or a value out of range.
    """
    if isinstance(values.get("weights"), (str, float, int)):
        raise ConfigError(f"{name}: weights={values['weights']!r} is not a list of numbers, one per expert")
    if values.get("weights") is not None:
        values["weights"] = tuple(values["weights"])
    return METHODS.make(name, values)


def post_names() -> list[str]:
    """Names of all post-processors, those of plug-ins included, in alphabetical order."""
    return POSTS.names()


def post_class(name: str) -> type[PostProcessor]:
    """The class of a post-processor.

    Raises:
        ConfigError: there is none of that name.
    """
    return POSTS.find(name)


def get_post(name: str, **values: Any) -> PostProcessor:
    """A post-processor by name with the given parameters.

    Example:
        >>> get_post("lines", beta=1.0).stacks
        'separate'

    Raises:
        ConfigError: no such post-processor or parameter, or a value out of range.
    """
    return POSTS.make(name, values)
