"""What is done with task vectors once they are sparse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from ._method import Method
from ._parameters import parameter
from .ties import mean_of_the_agreeing

Combine = Literal["linear", "ties"]


@dataclass(frozen=True)
class SparseMethod(Method):
    """A method that drops entries of every task vector, then adds the rest or lets it vote as TIES does."""

    family: ClassVar[str] = "task vectors"

    combine: Combine = parameter(
        "linear", "linear adds the sparse task vectors; ties averages, per entry, those with the elected sign."
    )

    def default_scale(self, experts: int) -> float:
        return 1.0 / experts if self.combine == "linear" else 1.0

    def combined(self, deltas: Float[Tensor, "experts *shape"]) -> Float[Tensor, "*shape"]:
        """The merged task vector from sparse, weighted ones."""
        return deltas.sum(0) if self.combine == "linear" else mean_of_the_agreeing(deltas)
