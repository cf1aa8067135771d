"""What a merging method is: a small frozen dataclass with one function to write, and the registry of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints, overload

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError, did_you_mean
from ..tensors import MATRIX_LIKE, NEVER_MERGED, Role


@dataclass(frozen=True)
class Block:
    """Consecutive rows of one tensor, from the base and from every expert: what a method sees at a time.

    Attributes:
        base: rows of the base model.
        experts: the same rows of every expert.
        start: index of the first element in the flattened tensor (in the whole model for methods of model scope).
    """

    base: Float[Tensor, "*shape"]
    experts: Float[Tensor, "experts *shape"]
    start: int

    @property
    def deltas(self) -> Float[Tensor, "experts *shape"]:
        """Task vectors: expert minus base."""
        return self.experts - self.base


class Blocks(ABC):
    """All rows of a tensor, or of a model, as blocks; may be gone through as often as needed."""

    numel: int

    @abstractmethod
    def __iter__(self) -> Iterator[Block]: ...


class TaskVectors(Sequence[Tensor]):
    """The weighted task vectors of one tensor as matrices, each computed in float64 when it is asked for.

    A method that needs one after the other has one in memory at a time, however many experts there are.
    """

    def __init__(self, base: Tensor, experts: Sequence[Tensor], weights: Float[Tensor, " experts"]) -> None:
        self._base, self._experts, self._weights = base, experts, weights
        self.shape = (base.shape[0], base[0].numel())
        """Rows and columns: whatever follows the first dimension counts as columns."""

    def __len__(self) -> int:
        return len(self._experts)

    @overload
    def __getitem__(self, index: int) -> Float[Tensor, "rows columns"]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Float[Tensor, "rows columns"]]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        delta = self._experts[index].to(self._base.device, torch.float64, copy=True).sub_(self._base)
        return delta.mul_(float(self._weights[index])).view(self.shape)


def parameter(
    default: Any,
    description: str,
    *,
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
) -> Any:
    """A field of a method that users set: declared once, read by Python, command line, YAML and documentation.

    Args:
        default: default value.
        description: one sentence, with units.
        low: least value of a number.
        high: greatest value of a number.
        low_open: whether ``low`` itself is out of range.
    """
    return field(default=default, metadata={"description": description, "low": low, "high": high, "low_open": low_open})


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method as the documentation shows it."""

    name: str
    default: Any
    description: str
    type: Any
    low: float | None = None
    high: float | None = None
    low_open: bool = False

    @property
    def range(self) -> str:
        """For example ``0 < x <= 1`` or ``tensor | model``."""
        choices = _choices(self.type)
        if choices:
            return " | ".join(map(str, choices))
        left = "" if self.low is None else f"{self.low:g} {'<' if self.low_open else '<='} "
        right = "" if self.high is None else f" <= {self.high:g}"
        return f"{left}x{right}" if left or right else ""

    def check(self, value: Any, owner: str) -> None:
        """Raises :class:`ConfigError` if the value has the wrong type or is out of range."""
        place = f"{owner}: {self.name}={value!r}"
        if value is None:
            if type(None) in get_args(self.type):
                return
            raise ConfigError(f"{place} may not be empty")
        choices = _choices(self.type)
        if choices:
            if value not in choices:
                raise ConfigError(f"{place} is not one of {', '.join(map(str, choices))}{_suggest(value, choices)}")
            return
        wanted = {int, float, bool} & {self.type, *get_args(self.type)}
        if wanted:
            kinds = (int, float) if float in wanted else tuple(wanted)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in wanted):
                raise ConfigError(f"{place} is not {' or '.join(sorted(kind.__name__ for kind in wanted))}")
        if self.low is not None and not (value > self.low or (value == self.low and not self.low_open)):
            raise ConfigError(f"{place} is out of range: {self.range}")
        if self.high is not None and not value <= self.high:
            raise ConfigError(f"{place} is out of range: {self.range}")


@dataclass(frozen=True)
class Method(ABC):
    """Base of all methods: the name, the family and the two parameters that every method has.

    The merged tensor is ``base + scale * delta``, where delta is what the method makes of the task vectors.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    source: ClassVar[str]
    requires_base: ClassVar[bool] = True
    minimum_experts: ClassVar[int] = 1

    scale: float | None = parameter(None, "Factor on the merged task vector (lambda); by default the method's own.")
    weights: tuple[float, ...] | None = parameter(None, "One factor per expert; by default 1 each.")

    def __post_init__(self) -> None:
        for item in parameters(type(self)):
            if item.name != "weights":
                item.check(getattr(self, item.name), self.name)
        if self.weights is not None:
            values = tuple(self.weights)
            if not all(
                isinstance(w, (int, float)) and not isinstance(w, bool) and abs(w) < float("inf") for w in values
            ):
                raise ConfigError(f"{self.name}: weights={list(values)!r} are not finite numbers")
            object.__setattr__(self, "weights", tuple(map(float, values)))
        if self.scale is not None and not abs(self.scale) < float("inf"):
            raise ConfigError(f"{self.name}: scale={self.scale!r} is not finite")

    def default_scale(self, experts: int) -> float:
        """The scale when the user gives none."""
        return 1.0

    def resolved_scale(self, experts: int) -> float:
        """The scale that applies to so many experts."""
        return self.default_scale(experts) if self.scale is None else float(self.scale)

    def resolved_weights(self, experts: int) -> Float[Tensor, " experts"]:
        """One weight per expert, float64.

        Raises:
            ConfigError: another number of weights was given.
        """
        if self.weights is None:
            return torch.ones(experts, dtype=torch.float64)
        if len(self.weights) != experts:
            raise ConfigError(f"{self.name}: {len(self.weights)} weights for {experts} experts; give one per expert")
        return torch.tensor(self.weights, dtype=torch.float64)

    def merges(self, role: Role) -> bool:
        """Whether tensors of this role take the method's own arithmetic; the others take the mean task vector."""
        return role not in NEVER_MERGED

    def statistics(self, blocks: Blocks, weights: Float[Tensor, " experts"]) -> Any:
        """What the method must know of the whole tensor (or model, see ``whole_model``) before it can merge a block."""
        return None

    @abstractmethod
    def merge_block(self, block: Block, weights: Float[Tensor, " experts"], statistics: Any) -> Float[Tensor, "*shape"]:
        """The merged rows, in the type of the block."""

    @property
    def whole_model(self) -> bool:
        """Whether :meth:`statistics` looks at all tensors at once rather than at one."""
        return False

    @property
    def blockwise(self) -> bool:
        """Whether the method can merge a tensor piece by piece; if not, the block it gets is the whole tensor."""
        return True


class WeightMethod(Method):
    """A method that combines the weights of the experts themselves; it needs a base only when ``scale`` is not 1."""

    family: ClassVar[str] = "parameter space"
    requires_base: ClassVar[bool] = False

    @abstractmethod
    def combine(
        self, experts: Float[Tensor, "experts *shape"], weights: Float[Tensor, " experts"]
    ) -> Float[Tensor, "*shape"]:
        """The merged weights."""

    def merge_block(self, block: Block, weights: Float[Tensor, " experts"], statistics: Any) -> Float[Tensor, "*shape"]:
        merged = self.combine(block.experts, weights)
        scale = self.resolved_scale(len(weights))
        return merged if scale == 1.0 else block.base + scale * (merged - block.base)


class TaskVectorMethod(Method):
    """A method that combines task vectors entry by entry."""

    family: ClassVar[str] = "task vectors"

    @abstractmethod
    def combine(
        self, deltas: Float[Tensor, "experts *shape"], weights: Float[Tensor, " experts"]
    ) -> Float[Tensor, "*shape"]:
        """The merged task vector, before ``scale``."""

    def merge_block(self, block: Block, weights: Float[Tensor, " experts"], statistics: Any) -> Float[Tensor, "*shape"]:
        return block.base + self.resolved_scale(len(weights)) * self.combine(block.deltas, weights)


class SpectralMethod(Method):
    """A method that works on singular values and vectors: it treats matrices and pointwise convolutions.

    All other tensors take the mean of the (weighted) task vectors, times ``scale``.
    """

    family: ClassVar[str] = "task subspace"

    @abstractmethod
    def combine_matrix(self, deltas: TaskVectors) -> Float[Tensor, "rows columns"]:
        """The merged task vector of a matrix from the weighted task vectors, before ``scale``; float64 in and out."""

    def merges(self, role: Role) -> bool:
        return role in MATRIX_LIKE

    @property
    def blockwise(self) -> bool:
        return False

    def merge_whole(
        self,
        base: Float[Tensor, "*shape"],
        experts: Sequence[Float[Tensor, "*shape"]],
        weights: Float[Tensor, " experts"],
    ) -> Float[Tensor, "*shape"]:
        """The merged tensor, in float64."""
        merged = self.combine_matrix(TaskVectors(base, experts, weights)).reshape(base.shape)
        return merged.mul_(self.resolved_scale(len(experts))).add_(base)

    def merge_block(self, block: Block, weights: Float[Tensor, " experts"], statistics: Any) -> Float[Tensor, "*shape"]:
        return self.merge_whole(block.base, list(block.experts), weights).to(block.base)


def mean_of_task_vectors(block: Block, weights: Float[Tensor, " experts"], scale: float) -> Float[Tensor, "*shape"]:
    """Base plus the scaled mean of the weighted task vectors: what a method does to roles it does not merge itself."""
    shares = (weights / len(weights)).to(block.base)
    return block.base + scale * torch.einsum("t...,t->...", block.deltas, shares)


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


def names() -> list[str]:
    """Names of all methods, in alphabetical order."""
    return sorted(_REGISTRY)


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        ConfigError: there is no such method; the message suggests one that is spelt alike.
    """
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


def parameters(cls: type[Method]) -> list[Parameter]:
    """The parameters of a method, its own first, then ``scale`` and ``weights``."""
    hints = get_type_hints(cls)
    common = [item.name for item in fields(Method)]
    own = [item for item in fields(cls) if item.name not in common]
    shared = [item for item in fields(cls) if item.name in common]
    return [
        Parameter(
            name=item.name,
            default=None if item.default is MISSING else item.default,
            description=item.metadata["description"],
            type=hints[item.name],
            low=item.metadata["low"],
            high=item.metadata["high"],
            low_open=item.metadata["low_open"],
        )
        for item in (*own, *shared)
    ]


def _choices(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    return ()


def _suggest(value: Any, choices: Iterable[Any]) -> str:
    return did_you_mean(value, map(str, choices)) if isinstance(value, str) else ""
