"""Post-processors: change the merged task vector that any method gave."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError, did_you_mean
from ..tensors import Depth, Role
from ._parameters import parameters
from ._registry import load_plugins


class Place(NamedTuple):
    """Where a task vector belongs, and what is known of the whole merge.

    Attributes:
        name: name of the tensor.
        role: what the tensor is.
        depth: its place in a stack of blocks, if it is in one.
        depths: the places of all tensors in blocks.
        ratio: L1 norm of the sum of the experts' task vectors over that of the merged change, in the whole model, for
            post-processors that ask for it (1 otherwise).
        experts: number of experts.
    """

    name: str
    role: Role
    depth: Depth | None
    depths: Mapping[str, Depth]
    ratio: float
    experts: int


@dataclass(frozen=True)
class PostProcessor(ABC):
    """Changes the merged task vector of every tensor that a method (or its mean for the rest) gave.

    Chained with ``then=[...]`` after any method, in order; ``scale`` multiplies what comes out.
    """

    name: ClassVar[str]
    family: ClassVar[str] = "post-processor"
    source: ClassVar[str]

    def __post_init__(self) -> None:
        for item in parameters(type(self)):
            item.check(getattr(self, item.name), self.name)

    @property
    def needs_ratio(self) -> bool:
        """Whether :attr:`Place.ratio` is needed, which takes computing the merge twice."""
        return False

    def needs_matrix(self, role: Role) -> bool:
        """Whether the task vector of a tensor of this role is needed in one piece."""
        return False

    @abstractmethod
    def apply(self, delta: Float[Tensor, "*shape"], place: Place) -> Float[Tensor, "*shape"]:
        """The changed task vector."""


_REGISTRY: dict[str, type[PostProcessor]] = {}
P = TypeVar("P", bound=type[PostProcessor])


def register_post(cls: P) -> P:
    """Class decorator that makes a post-processor known by its name.

    Raises:
        ValueError: another one has that name.
    """
    if _REGISTRY.setdefault(cls.name, cls) is not cls:
        raise ValueError(f"there is already a post-processor called {cls.name!r}")
    return cls


def post_names() -> list[str]:
    """Names of all post-processors, in alphabetical order."""
    load_plugins()
    return sorted(_REGISTRY)


def post_class(name: str) -> type[PostProcessor]:
    """The class of a post-processor.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in _REGISTRY:
        load_plugins()
    if name not in _REGISTRY:
        raise ConfigError(f"there is no post-processor {name!r}{did_you_mean(name, _REGISTRY)}")
    return _REGISTRY[name]


def get_post(value: str | Mapping[str, Any] | PostProcessor) -> PostProcessor:
    """A post-processor from its name, or from a mapping with ``name`` and its parameters.

    Raises:
        ConfigError: there is no such post-processor or parameter, or a value is out of range.
    """
    if isinstance(value, PostProcessor):
        return value
    values = {"name": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"then: {value!r} is neither the name of a post-processor nor a mapping with a name")
    cls = post_class(name)
    known = [item.name for item in parameters(cls)]
    for key in values:
        if key not in known:
            raise ConfigError(f"{name} has no parameter {key!r}{did_you_mean(str(key), known)}")
    return cls(**values)
