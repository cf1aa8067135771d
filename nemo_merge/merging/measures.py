"""Measures of one tensor's task vectors: inner products, signs, spectra, overlap of singular subspaces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..linalg import Svd, gram, noise_cut, thin_svd
from ..methods import TaskVectors
from ..methods._blocks import storage_noise
from ..methods._selection import largest, share_of
from ..methods.ties import Ties
from .blocks import TensorBlocks, compute_dtype

KEPT = Ties.density
"""Share of the largest magnitudes of each task vector among which signs are compared too: the default of TIES."""

CURVE = 65
"""Points at which a spectrum is kept, from the first singular value to the last."""


@dataclass
class Signs:
    """How often the signs of task vectors differ, as counts of entries.

    Attributes:
        both: entries that both experts of a pair move.
        opposite: those of them that they move in opposite directions.
        several: entries that two or more experts move.
        disputed: those of them on which not all of these experts agree.
    """

    both: Float[Tensor, "experts experts"]
    opposite: Float[Tensor, "experts experts"]
    several: int = 0
    disputed: int = 0

    @classmethod
    def none(cls, experts: int) -> Signs:
        """No entries."""
        return cls(*torch.zeros(2, experts, experts, dtype=torch.float64))

    def count(self, signs: Float[Tensor, "experts entries"]) -> None:
        """Adds entries, given as -1, 0 (not moved, or not counted) and 1; fewer than 2^24 of them."""
        moved = signs.abs()
        both = moved @ moved.mT
        self.both += both
        self.opposite += (both - signs @ signs.mT) / 2
        number = moved.sum(0)
        self.several += int((number >= 2).sum())
        self.disputed += int((signs.sum(0).abs() < number).sum())

    def __add__(self, other: Signs) -> Signs:
        return Signs(
            self.both + other.both,
            self.opposite + other.opposite,
            self.several + other.several,
            self.disputed + other.disputed,
        )

    @property
    def pairs(self) -> Float[Tensor, "experts experts"]:
        """Share of opposite signs by pair; NaN where a pair moves no entry in common."""
        return self.opposite / self.both

    @property
    def pairwise(self) -> float:
        """Share of opposite signs over all pairs: 0.5 for experts that have nothing to do with each other."""
        both = float(self.both.triu(1).sum())
        return float(self.opposite.triu(1).sum()) / both if both else float("nan")

    @property
    def any(self) -> float:
        """Share of entries with experts on both sides; T unrelated experts come to 1 - 2^(1-T)."""
        return self.disputed / self.several if self.several else float("nan")


class Spectrum(NamedTuple):
    """What the singular values of one expert's task vector show; values below the noise of storage count as zero.

    Attributes:
        effective_rank: exponential of the entropy of ``s / sum(s)`` (Roy and Vetterli, 2007, EUSIPCO).
        stable_rank: squared Frobenius norm over squared spectral norm.
        rank_90: number of singular values that hold 90 % of the energy (squared norm).
        kept: share of the energy in the leading triplets that STI looks at.
        curve: singular values over the largest, at :data:`CURVE` equal steps from the first to the last.
    """

    effective_rank: float
    stable_rank: float
    rank_90: int
    kept: float
    curve: Float[Tensor, " points"]


class Interference(NamedTuple):
    """How the leading singular subspaces of several experts interfere.

    Attributes:
        sti: singular task interference, ``|(U'U - I) S (V'V - I)|_1``, the sum of magnitudes, with the experts'
            leading singular vectors side by side (Gargiulo et al., 2025, arXiv 2412.00081, section 3).
        singular_sum: sum of the singular values in ``S``; ``sti`` over it does not depend on the experts' norms.
        overlap: mean over pairs and both sides of ``|U_i'U_j|_F^2 / k``, the subspace similarity of Hu et al., 2022,
            LoRA, section 7.2: 0 for orthogonal subspaces, 1 for the same one.
        chance: the overlap to expect of subspaces of these sizes with random directions.
    """

    sti: float
    singular_sum: float
    overlap: float
    chance: float

    @property
    def relative(self) -> float:
        """STI per unit of singular values."""
        return self.sti / self.singular_sum if self.singular_sum else 0.0


@dataclass
class Measures:
    """What was measured of one tensor.

    Attributes:
        base: squared norm of the base.
        experts: squared norm of every expert's weights.
        gram: inner products of the task vectors, in float64.
        signs: signs of all entries.
        top_signs: signs among the largest magnitudes of each expert in this tensor (:data:`KEPT`).
        top_rows: share of every expert's squared norm in the 1 % of the rows that move most; None where rows are no
            tokens.
        spectra: one per expert, for matrices, embeddings and heads.
        interference: for matrices, with two experts or more.
        rank: number of leading triplets that ``spectra`` and ``interference`` look at.
    """

    base: float
    experts: Float[Tensor, " experts"]
    gram: Float[Tensor, "experts experts"]
    signs: Signs
    top_signs: Signs
    top_rows: list[float] | None = None
    spectra: list[Spectrum] = field(default_factory=list)
    interference: Interference | None = None
    rank: int = 0


def measure_entries(name: str, base: Tensor, experts: Sequence[Tensor], *, rows: bool = False) -> Measures:
    """Inner products and signs, in blocks of rows.

    Args:
        name: name of the tensor.
        base: the base's.
        experts: every expert's, of the same shape.
        rows: measure also how the change is spread over the rows.
    """
    count = len(experts)
    blocks = TensorBlocks(base, experts, compute_dtype([base, *experts]), name=name)
    found = Measures(
        0.0,
        torch.zeros(count, dtype=torch.float64),
        torch.zeros(count, count, dtype=torch.float64),
        Signs.none(count),
        Signs.none(count),
    )
    several = count > 1
    if several:
        top = largest(blocks, lambda block: block.magnitudes, share_of(blocks, KEPT, count))
    by_row = []
    for block in blocks:
        rows_of_base = block.base.reshape(-1).double()
        weights = block.experts.reshape(count, -1).double()
        found.base += float(rows_of_base.square().sum())
        found.experts += weights.square().sum(1)
        deltas = weights.sub_(rows_of_base)
        found.gram += deltas @ deltas.mT
        if rows:
            by_row.append(deltas.view(count, block.base.shape[0], -1).square().sum(2))
        if several:
            signs = deltas.sign().float()
            found.signs.count(signs)
            found.top_signs.count(signs * top.mask(block, block.magnitudes).reshape(count, -1))
    if rows:
        energies = torch.cat(by_row, dim=1).sort(dim=1, descending=True).values
        first = max(1, energies.shape[1] // 100)
        found.top_rows = (energies[:, :first].sum(1) / energies.sum(1)).tolist()
    return found


def measure_matrices(base: Tensor, experts: Sequence[Tensor], rank: int) -> tuple[list[Spectrum], Interference | None]:
    """Spectra of the task vectors as matrices, and the interference of their leading triplets, by one SVD each.

    Args:
        base: the base's matrix; whatever follows the first dimension counts as columns.
        experts: every expert's.
        rank: number of leading triplets.
    """
    deltas = TaskVectors(base, experts, torch.ones(len(experts), dtype=torch.float64))
    parts, spectra = [], []
    for index, delta in enumerate(deltas):
        part = thin_svd(delta, rank if len(experts) > 1 else 0, deltas.noise(index))
        spectra.append(spectrum(part.s, rank))
        parts.append(Svd(part.u, part.s[:rank], part.vt))
    return spectra, interference(parts) if len(experts) > 1 else None


def measure_tall(base: Tensor, experts: Sequence[Tensor], rank: int) -> list[Spectrum]:
    """Spectra of task vectors with many rows, such as embeddings, from their Gram matrix by blocks of rows."""
    if base.shape[0] < base[0].numel():
        return measure_matrices(base, experts, rank)[0]
    return [spectrum(_singular_values(base, expert), rank) for expert in experts]


def _singular_values(base: Tensor, expert: Tensor) -> Float[Tensor, " columns"]:
    columns = base[0].numel()
    total = torch.zeros(columns, columns, dtype=torch.float64)
    for delta in _double_deltas(base, expert):
        total += gram(delta)
    s = torch.linalg.eigvalsh(total).flip(-1).clamp_min(0).sqrt()
    return torch.where(s > noise_cut(float(s[0]), storage_noise(base, [expert])), s, 0.0)


def _double_deltas(base: Tensor, expert: Tensor) -> Iterator[Float[Tensor, "rows columns"]]:
    for block in TensorBlocks(base, [expert], torch.float64):
        yield block.deltas[0].flatten(1)


def spectrum(s: Float[Tensor, " short"], rank: int) -> Spectrum:
    """Summary of singular values in descending order; zeros all over for a task vector of zeros."""
    energy = s.square()
    total = float(energy.sum())
    if total == 0:
        return Spectrum(0.0, 0.0, 0, 0.0, torch.zeros(CURVE))
    share = s[s > 0] / s.sum()
    cumulated = energy.cumsum(0) / total
    places = torch.linspace(0, len(s) - 1, CURVE, dtype=torch.float64)
    low = places.floor().long()
    high = (low + 1).clamp_max(len(s) - 1)
    curve = s[low] + (s[high] - s[low]) * (places - low)
    return Spectrum(
        effective_rank=float(torch.exp(-(share * share.log()).sum())),
        stable_rank=total / float(energy[0]),
        rank_90=int((cumulated < 0.9 - 1e-12).sum()) + 1,
        kept=float(cumulated[min(rank, len(s)) - 1]),
        curve=curve / s[0],
    )


def interference(parts: Sequence[Svd]) -> Interference:
    """Singular task interference and overlap of the leading triplets of several experts.

    Args:
        parts: triplets of every expert; triplets of zeros count for nothing.
    """
    u = torch.cat([part.u for part in parts], dim=1)
    vt = torch.cat([part.vt for part in parts], dim=0)
    s = torch.cat([part.s for part in parts])
    owner = torch.cat([torch.full((len(part.s),), place) for place, part in enumerate(parts)])
    left, right = u.mT @ u, vt @ vt.mT
    ranks = [int((part.s > 0).sum()) for part in parts]
    overlap, chance = _overlap(left, right, owner, ranks, (u.shape[0], vt.shape[1]))
    left.diagonal().sub_(1)
    right.diagonal().sub_(1)
    return Interference(float(((left * s) @ right).abs().sum()), float(s.sum()), overlap, chance)


def _overlap(
    left: Tensor, right: Tensor, owner: Tensor, ranks: Sequence[int], shape: tuple[int, int]
) -> tuple[float, float]:
    """Mean overlap over the pairs of experts that move, and what to expect of random subspaces."""
    overlaps, chances = [], []
    masks: list[Bool[Tensor, " triplets"]] = [owner == place for place in range(len(ranks))]
    for i, j in pairs(len(ranks)):
        smaller, product = min(ranks[i], ranks[j]), ranks[i] * ranks[j]
        if smaller:
            for gram, size in ((left, shape[0]), (right, shape[1])):
                overlaps.append(float(gram[masks[i]][:, masks[j]].square().sum()) / smaller)
                chances.append(product / size / smaller)
    count = max(len(overlaps), 1)
    return sum(overlaps) / count, sum(chances) / count


def pairs(experts: int) -> list[tuple[int, int]]:
    """All pairs of experts."""
    return [(i, j) for i in range(experts) for j in range(i + 1, experts)]
