"""Post-processors: change the merged task vector that any method gave."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from jaxtyping import Float
from torch import Tensor

from ..tensors import Depth, Role
from ._parameters import parameters


class Place(NamedTuple):
    """Where a task vector belongs, and what is known of the whole merge.

    Attributes:
        name: name of the tensor.
        role: what the tensor is.
        depth: its place in a stack of blocks, if it is in one.
        depths: the places of all tensors in blocks.
        ratio: L1 norm of the sum of the experts' task vectors over that of the merged change, in the whole model, for
            post-processors that ask for it (1 otherwise).
        noise: spectral norm that rounding of the experts' weights may have added to the merged task vector.
        experts: number of experts.
    """

    name: str
    role: Role
    depth: Depth | None
    depths: Mapping[str, Depth]
    ratio: float
    noise: float
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
