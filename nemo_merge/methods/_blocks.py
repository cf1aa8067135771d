"""What a method sees of base and experts: rows of a tensor, or task vectors one after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import overload

import torch
from jaxtyping import Float
from torch import Tensor

from ..low_rank import AdaptedTensor, Cores
from ..posterior import Posterior


class Block:
    """Consecutive rows of one tensor, from the base and from every expert: what a method sees at a time.

    Args:
        base: rows of the base model.
        experts: the same rows of every expert, in one tensor or one by one; they may be of other types than the base.
        start: index of the first element in the flattened tensor (in the whole model for methods of model scope).
        name: name of the tensor.
        posteriors: of these rows of every expert, for methods that ask for them (``uses_posteriors``).

    Attributes:
        rows: the rows of every expert, one by one.
    """

    def __init__(
        self,
        base: Float[Tensor, "*shape"],
        experts: Sequence[Tensor] | Tensor,
        start: int,
        name: str = "",
        posteriors: Sequence[Posterior] = (),
    ) -> None:
        self.base = base
        self.start = start
        self.name = name
        self.rows = list(experts)
        self.posteriors = posteriors

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def experts(self) -> Float[Tensor, "experts *shape"]:
        """The rows of every expert, in the type of the base."""
        return torch.stack([expert.to(self.base) for expert in self.rows])

    @property
    def deltas(self) -> Float[Tensor, "experts *shape"]:
        """Task vectors: expert minus base; a new tensor each time."""
        deltas = self.base.new_empty((len(self), *self.base.shape))
        for expert, delta in zip(self.rows, deltas, strict=True):
            torch.sub(expert, self.base, out=delta)
        return deltas

    @property
    def magnitudes(self) -> Float[Tensor, "experts *shape"]:
        """Magnitudes of the task vectors, which decide what trimming keeps."""
        return self.deltas.abs_()

    @property
    def variances(self) -> Float[Tensor, "experts *shape"]:
        """Posterior variances of the entries; infinite where an expert says nothing of them."""
        return torch.stack([posterior.variances_like(self.base) for posterior in self.posteriors])

    @property
    def prior_variances(self) -> Float[Tensor, "experts *shape"]:
        """Variances of the entries under the priors that the experts were trained with (``uses_priors``)."""
        return torch.stack([posterior.priors_like(self.base) for posterior in self.posteriors])

    def weighted(self, weights: Float[Tensor, " experts"]) -> Float[Tensor, "experts *shape"]:
        """Task vectors, each times its expert's weight."""
        deltas = self.deltas
        for delta, weight in zip(deltas, weights.tolist(), strict=True):
            if weight != 1:
                delta *= weight
        return deltas

    def weighted_sum(self, weights: Float[Tensor, " experts"]) -> Float[Tensor, "*shape"]:
        """Sum of the task vectors times their experts' weights, one expert after the other."""
        delta, total = torch.empty_like(self.base), None
        for expert, weight in zip(self.rows, weights.tolist(), strict=True):
            torch.sub(expert, self.base, out=delta)
            total = delta * weight if total is None else total.add_(delta, alpha=weight)
        assert total is not None
        return total


def per_expert(values: Float[Tensor, " experts"], like: Float[Tensor, "experts *shape"]) -> Tensor:
    """One value per expert, shaped so that it applies to the expert's rows."""
    return values.to(like).view(-1, *[1] * (like.dim() - 1))


class Blocks(ABC):
    """All rows of a tensor, or of a model, as blocks; may be gone through as often as needed."""

    numel: int

    @abstractmethod
    def __iter__(self) -> Iterator[Block]: ...

    def sample(self, count: int) -> Iterator[Block]:
        """Blocks of about so many entries in all, from everywhere; by default of all entries."""
        return iter(self)


class TaskVectors(Sequence[Tensor]):
    """The weighted task vectors of one tensor as matrices, each computed in float64 when it is asked for.

    A method that needs one after the other has one in memory at a time, however many experts there are. Those of
    adapters are multiplied out from their factors and have no rounding of stored weights.
    """

    def __init__(
        self, base: Tensor, experts: Sequence[Tensor | AdaptedTensor], weights: Float[Tensor, " experts"]
    ) -> None:
        self._base, self._experts, self.weights = base, experts, weights
        self.shape = (base.shape[0], base[0].numel())
        """Rows and columns of the tensor: whatever follows the first dimension counts as columns.

        Ranks are shares of the shorter of these, which the matrices may fall short of (:class:`CoreVectors`).
        """
        self._noise: float | None = None

    def noise(self, index: int | None = None) -> float:
        """Spectral norm that rounding of weights may have added to a weighted task vector, or to their sum.

        Singular values below it are no information: a low-rank change of weights stored in float32 has full rank.
        """
        if self._noise is None:
            self._noise = storage_noise(self._base, self._experts)
        weights = self.weights if index is None else self.weights[index]
        return self._noise * float(weights.norm())

    def __len__(self) -> int:
        return len(self._experts)

    @overload
    def __getitem__(self, index: int) -> Float[Tensor, "rows columns"]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Float[Tensor, "rows columns"]]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return self.unweighted(index).mul_(float(self.weights[index]))

    def unweighted(self, index: int) -> Float[Tensor, "rows columns"]:
        """The task vector of one expert without its weight."""
        expert = self._experts[index]
        if isinstance(expert, AdaptedTensor):
            return expert.change.rows()
        delta = expert.to(self._base.device, torch.float64, copy=True).sub_(self._base)
        return delta.view(self.shape)

    def zeros(self) -> Float[Tensor, "rows columns"]:
        """A matrix of zeros like the task vectors, where they are."""
        return torch.zeros(self.shape, dtype=torch.float64, device=self._base.device)

    def sum(self) -> Float[Tensor, "rows columns"]:
        """The sum of the weighted task vectors."""
        total = self[0]
        for index in range(1, len(self)):
            total += self[index]
        return total


class CoreVectors(TaskVectors):
    """Low-rank task vectors in common orthonormal bases: matrices as small as the sum of the ranks.

    A method that is ``rotation_equivariant`` cannot tell them from the task vectors, except by their size: shares of
    the rank are to be taken of ``shape``, which is that of the tensor. They are known exactly, so there is no noise.
    """

    def __init__(self, cores: Cores, weights: Float[Tensor, " experts"]) -> None:
        self._cores, self.weights, self.shape = cores.cores, weights, cores.shape

    def noise(self, index: int | None = None) -> float:
        return 0.0

    def __len__(self) -> int:
        return len(self._cores)

    def unweighted(self, index: int) -> Float[Tensor, "p q"]:
        return self._cores[index].clone()

    def zeros(self) -> Float[Tensor, "p q"]:
        return torch.zeros_like(self._cores[0])


def storage_noise(base: Float[Tensor, "*shape"], experts: Sequence[Tensor | AdaptedTensor]) -> float:
    """Spectral norm of a matrix of the rounding errors that weights of this size have in the experts' types.

    An upper estimate: errors of at most half a unit in the last place, taken as independent, so that the norm is that
    of a random matrix, at most the largest row norm plus the largest column norm.
    """
    matrix = base.reshape(base.shape[0] if base.dim() else 1, -1)
    if matrix.numel() == 0:
        return 0.0
    rows, columns = (torch.linalg.vector_norm(matrix, dim=dim, dtype=torch.float64).max() for dim in (1, 0))
    return 0.5 * max(torch.finfo(expert.dtype).eps for expert in experts) * float(rows + columns)
