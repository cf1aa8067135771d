"""What a merging method is: a small frozen dataclass with one function to write."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError
from ..tensors import MATRIX_LIKE, NEVER_MERGED, Role
from ._blocks import Block, Blocks, TaskVectors
from ._parameters import parameter, parameters


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
