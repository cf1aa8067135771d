"""What a merging method is: a small frozen dataclass with one or two functions to write."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
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
    minimum_experts: ClassVar[int] = 1
    maximum_experts: ClassVar[int | None] = None
    late: ClassVar[tuple[str, ...]] = ("scale",)
    """Parameters that are used only after the expensive part: a sweep over them does not repeat it."""
    zero_scale_is_base: ClassVar[bool] = True
    """Whether a scale of 0 gives the base."""

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
        if self.scale is not None and not abs(self.scale) <= torch.finfo(torch.float32).max:
            raise ConfigError(f"{self.name}: scale={self.scale!r} is not a finite number in float32")

    def default_scale(self, experts: int) -> float:
        """The scale when the user gives none."""
        return 1.0

    def resolved_scale(self, experts: int) -> float:
        """The scale that applies to so many experts."""
        return self.default_scale(experts) if self.scale is None else float(self.scale)

    def applied_scale(self, experts: int) -> float:
        """What the merged task vector is still to be multiplied by: the scale, unless it is used before."""
        return self.resolved_scale(experts)

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

    def shares(self, weights: Float[Tensor, " experts"]) -> Float[Tensor, " experts"]:
        """The experts' shares in what is averaged: statistics, and rows of tokens that the base lacks.

        Negative weights cannot be shares, then all experts count alike.
        """
        if bool((weights >= 0).all()) and bool(weights.any()):
            return weights / weights.sum()
        return torch.full_like(weights, 1 / len(weights))

    def additive_factor(self, weights: Float[Tensor, " experts"]) -> float | None:
        """The c of ``merged = base + c sum_t w_t f(expert_t - base)``, where f looks at one expert alone.

        By it an expert can be added to a merged model, or taken out, without the others
        (:func:`nemo_merge.merging.extend`). None where experts have a say in each other's change, or where f is drawn
        at random by the expert's place. f is what the method makes of one expert of weight 1 with ``scale`` 1.
        """
        return None

    def early(self) -> Method:
        """The method with its ``late`` parameters at their defaults: the same for all that share the rest."""
        defaults: dict[str, Any] = {item.name: item.default for item in fields(self) if item.name in self.late}
        return replace(self, **defaults)

    def merges(self, role: Role) -> bool:
        """Whether tensors of this role take the method's own arithmetic; the others take :meth:`rest`."""
        return role not in NEVER_MERGED

    def statistics(self, blocks: Blocks, weights: Float[Tensor, " experts"]) -> Any:
        """What the method must know of the whole tensor (or model, see ``whole_model``) before it can merge a block."""
        return None

    @abstractmethod
    def combine_block(
        self, block: Block, weights: Float[Tensor, " experts"], statistics: Any
    ) -> Float[Tensor, "*shape"]:
        """The merged task vector of the rows, before ``scale``, in the type of the block."""

    def rest(self, block: Block, weights: Float[Tensor, " experts"]) -> Float[Tensor, "*shape"]:
        """The merged task vector, before ``scale``, of a tensor that the method does not treat itself: the mean."""
        return block.weighted_sum(weights / len(weights))

    def requires_base(self, experts: int) -> bool:
        """Whether the method cannot do without a base."""
        return True

    @property
    def whole_model(self) -> bool:
        """Whether :meth:`statistics` looks at all tensors at once rather than at one."""
        return False

    @property
    def uses_posteriors(self) -> bool:
        """Whether the method needs to know how sure the experts are of every entry (:attr:`Block.variances`).

        A merge by such a method is refused where an expert does not say it of a tensor.
        """
        return False

    @property
    def uses_priors(self) -> bool:
        """Whether it needs the variances under the experts' priors too (:attr:`Block.prior_variances`)."""
        return False

    @property
    def rotation_equivariant(self) -> bool:
        """Whether orthogonal changes of basis go through: task vectors ``Q d_t R'`` of a matrix give ``Q delta R'``.

        The task vectors of adapters are then merged in the small space that they span, without multiplying them out
        (:class:`CoreVectors`). This holds with these parameters, not for the class as such; :meth:`rest` has to be
        linear, as the mean is.
        """
        return False

    @property
    def by_row(self) -> bool:
        """Whether the method looks at whole rows; a tensor of one dimension is then one row."""
        return False


class TaskVectorMethod(Method):
    """A method that combines task vectors entry by entry."""

    family: ClassVar[str] = "task vectors"

    @abstractmethod
    def combine(
        self, deltas: Float[Tensor, "experts *shape"], weights: Float[Tensor, " experts"]
    ) -> Float[Tensor, "*shape"]:
        """The merged task vector, before ``scale``."""

    def combine_block(
        self, block: Block, weights: Float[Tensor, " experts"], statistics: Any
    ) -> Float[Tensor, "*shape"]:
        return self.combine(block.deltas, weights)


@dataclass(frozen=True)
class SpectralMethod(Method):
    """A method that works on singular values and vectors: it treats matrices and pointwise convolutions.

    All other tensors take the mean of the (weighted) task vectors, times ``scale``. What is expensive goes into
    :meth:`factors`, what depends on the parameters in ``late`` into :meth:`assemble`.
    """

    family: ClassVar[str] = "task subspace"

    conv_as_matrix: bool = parameter(
        False, "Treat convolutions of larger kernels as matrices [out, in * kernel] too; never depthwise ones."
    )

    @abstractmethod
    def factors(self, deltas: TaskVectors) -> Any:
        """What is needed of the weighted task vectors of a matrix, whatever the values of the ``late`` parameters."""

    def assemble(self, factors: Any) -> Float[Tensor, "rows columns"]:
        """The merged task vector of a matrix, before ``scale``; float64."""
        assert isinstance(factors, Tensor)
        return factors

    def combine_matrix(self, deltas: TaskVectors) -> Float[Tensor, "rows columns"]:
        """The merged task vector of a matrix from the weighted task vectors, before ``scale``; float64 in and out."""
        return self.assemble(self.factors(deltas))

    def merges(self, role: Role) -> bool:
        return role in MATRIX_LIKE or (self.conv_as_matrix and role is Role.CONV)

    def combine_block(
        self, block: Block, weights: Float[Tensor, " experts"], statistics: Any
    ) -> Float[Tensor, "*shape"]:
        merged = self.combine_matrix(TaskVectors(block.base, list(block.experts), weights))
        return merged.reshape(block.base.shape).to(block.base)


def sum_of_task_vectors(block: Block, weights: Float[Tensor, " experts"]) -> Float[Tensor, "*shape"]:
    """The weighted sum of the task vectors."""
    return block.weighted_sum(weights)
