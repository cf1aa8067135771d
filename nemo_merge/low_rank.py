"""Matrices as products of thin factors, and several of them in one common basis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """The matrix ``left @ right``: what an adapter changes of one tensor, both factors in float64.

    The matrix stands for a tensor whose first dimension is its rows and whose other dimensions are its columns.
    """

    left: Float[Tensor, "rows rank"]
    right: Float[Tensor, "rank columns"]

    @classmethod
    def zero(cls, rows: int, columns: int) -> LowRank:
        """No change: a matrix of rank 0."""
        return cls(torch.zeros(rows, 0, dtype=torch.float64), torch.zeros(0, columns, dtype=torch.float64))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """Number of columns of the left factor; the rank of the matrix at most."""
        return self.left.shape[1]

    def __bool__(self) -> bool:
        """False where the matrix is known to be zero."""
        return self.rank > 0 and bool(self.left.any()) and bool(self.right.any())

    @property
    def mT(self) -> LowRank:  # noqa: N802  # as torch calls it
        """The transpose."""
        return LowRank(self.right.mT, self.left.mT)

    def to(self, device: torch.device) -> LowRank:
        """The same factors on a device."""
        return LowRank(self.left.to(device), self.right.to(device))

    def rows(self, part: slice = slice(None)) -> Float[Tensor, "rows columns"]:
        """Rows of the matrix, multiplied out."""
        return self.left[part] @ self.right


class AdaptedTensor:
    """A tensor of the base plus a low-rank change, in float64 and only in the rows that are asked for.

    Stands in for an expert's tensor where it would be stored: the change is not rounded to the base's precision.
    """

    dtype = torch.float64

    def __init__(self, base: Tensor, change: LowRank) -> None:
        self.base, self.change = base, change.to(base.device)

    def to(self, device: torch.device) -> AdaptedTensor:
        """The same on a device."""
        return AdaptedTensor(self.base.to(device), self.change)

    def __getitem__(self, part: slice) -> Float[Tensor, "*shape"]:
        rows = self.base[part].to(self.dtype, copy=True)
        return rows.add_(self.change.rows(part).view(rows.shape))


@dataclass(frozen=True)
class Cores:
    """Matrices of low rank in one common pair of orthonormal bases: ``matrix_t = left @ cores[t] @ right``.

    Inner products, norms, singular values and everything else that does not depend on the choice of an orthonormal
    basis are those of the cores.
    """

    left: Float[Tensor, "rows p"]
    cores: Float[Tensor, "experts p q"]
    right: Float[Tensor, "q columns"]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrices themselves."""
        return self.left.shape[0], self.right.shape[1]

    def expand(self, core: Float[Tensor, "p q"]) -> LowRank:
        """A matrix in the bases as a product of two factors."""
        return LowRank(self.left @ core, self.right)


def compress(matrices: Sequence[LowRank]) -> Cores:
    """The common bases of several low-rank matrices, from QR decompositions of all left and all right factors.

    Costs ``O((rows + columns) R^2)`` for ranks that sum to R; exact up to rounding in float64.
    """
    left, from_left = torch.linalg.qr(torch.cat([matrix.left for matrix in matrices], dim=1))
    right, from_right = torch.linalg.qr(torch.cat([matrix.right for matrix in matrices], dim=0).mT)
    ranks = [matrix.rank for matrix in matrices]
    pairs = zip(from_left.split(ranks, dim=1), from_right.split(ranks, dim=1), strict=True)
    return Cores(left, torch.stack([a @ b.mT for a, b in pairs]), right.mT)
