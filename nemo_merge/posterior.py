"""How sure an expert is of its change of a tensor: variances of the entries, known as factors or entry by entry."""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType

import torch
from jaxtyping import Float
from torch import Tensor

from .low_rank import LowRank


@dataclass(frozen=True)
class Posterior:
    """A mean-field Gaussian posterior of one tensor, as variances; its mean is the expert itself.

    Matrices of factors have the tensor's first dimension as rows and all others as columns. A variance is infinite
    where the expert says nothing.

    Attributes:
        variance: of every entry.
        prior: variance of every entry under the prior that the expert was trained with; None where it is not known.
    """

    variance: LowRank | Tensor
    prior: LowRank | Tensor | None = None

    @classmethod
    def none(cls, rows: int, columns: int) -> Posterior:
        """Of an expert that says nothing: one that was never trained on this tensor."""
        left, right = torch.ones(rows, 1, dtype=torch.float64), torch.ones(1, columns, dtype=torch.float64)
        nothing = LowRank(left * torch.inf, right)
        return cls(nothing, nothing)

    @property
    def mT(self) -> Posterior:  # noqa: N802  # as torch calls it
        """That of the transpose."""
        return Posterior(self.variance.mT, None if self.prior is None else self.prior.mT)

    def __getitem__(self, part: slice | EllipsisType) -> Posterior:
        """The posterior of some rows; nothing is multiplied out yet."""
        return Posterior(_cut(self.variance, part), None if self.prior is None else _cut(self.prior, part))

    def variances_like(self, rows: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The variances, in shape, type and place of rows of the tensor."""
        return _dense(self.variance, rows)

    def priors_like(self, rows: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The variances under the prior, in shape, type and place of rows of the tensor."""
        assert self.prior is not None
        return _dense(self.prior, rows)


def lora_posterior(
    a: Float[Tensor, "rank columns"],
    b: Float[Tensor, "rows rank"],
    rho_a: Float[Tensor, "rank columns"],
    rho_b: Float[Tensor, "rows rank"] | None,
    scaling: float,
    prior_scale: float | None,
) -> Posterior:
    """Variances of the entries of ``s B A`` whose factors have independent Gaussian entries.

    With means A, B and standard deviations ``sA = softplus(rho_a)``, ``sB = softplus(rho_b)``, squares entry by entry
    and products of matrices::

        Var = s^2 [B^2 sA^2 + sB^2 A^2 + sB^2 sA^2] = s^2 [B^2 + sB^2, sB^2] [sA^2; A^2]

    which is exact (the factors are independent), and of rank 2 r or less, so that it is kept as factors too. Without
    ``rho_b`` the factor B has no spread. The prior N(0, p^2) of the factors gives ``s^2 r p^4`` to every entry, or
    ``s^2 p^2 sum_r B^2`` to a row, given B, where B has no spread.

    Args:
        a: posterior means of A (``lora_A``).
        b: posterior means of B (``lora_B``).
        rho_a: what the standard deviations of A come from.
        rho_b: what those of B come from.
        scaling: the factor s of the adapter.
        prior_scale: standard deviation p of the prior of the factors' entries, if it is known.

    Returns:
        With all factors in float64.
    """
    mean_a, mean_b, var_a = (
        a.double().square(),
        b.double().square(),
        torch.nn.functional.softplus(rho_a.double()).square(),
    )
    square = scaling**2
    if rho_b is None:
        variance = LowRank(square * mean_b, var_a)
        spread = mean_b.sum(1, keepdim=True)
    else:
        var_b = torch.nn.functional.softplus(rho_b.double()).square()
        variance = LowRank(square * torch.cat([mean_b + var_b, var_b], dim=1), torch.cat([var_a, mean_a]))
        spread = torch.full_like(mean_b[:, :1], mean_b.shape[1])
    if prior_scale is None:
        return Posterior(variance)
    power = 2 if rho_b is None else 4
    return Posterior(variance, LowRank(square * prior_scale**power * spread, torch.ones_like(var_a[:1])))


def _cut(matrix: LowRank | Tensor, part: slice | EllipsisType) -> LowRank | Tensor:
    return LowRank(matrix.left[part], matrix.right) if isinstance(matrix, LowRank) else matrix[part]


def _dense(matrix: LowRank | Tensor, like: Tensor) -> Tensor:
    dense = matrix.to(like.device).rows() if isinstance(matrix, LowRank) else matrix
    return dense.to(like).view(like.shape)
