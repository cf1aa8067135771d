"""Spectral kernels shared by the methods. All of them compute in float64 and take matrices of any aspect ratio.

Accuracy statements hold for float64 input of size up to a few thousand and were measured by ``tests/test_linalg.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

RANK_TOLERANCE = 1e-6
"""Singular values below this share of the largest count as zero.

The Gram matrix squares singular values, so that smaller ones drown in its rounding; and the difference of two float32
checkpoints is itself rounded at about this level."""

NOISE_SHARE = 0.1
"""The largest share of the largest singular value that counts as noise, however large the noise is said to be."""

Orthogonalizer = Literal["newton_schulz", "polar", "gram_polar"]
Triple = tuple[float, float, float]

POLISH: Triple = (1.875, -1.25, 0.375)
"""The classical quintic iteration: converges cubically near 1 and never overshoots."""

SCHEDULES: dict[str, tuple[Triple, ...]] = {
    # Muon (K. Jordan, 2024): five equal steps; does not converge to 1 but into [0.68, 1.20].
    "simple": ((3.4445, -4.7750, 2.0315),) * 5,
    # The set of that name in NVIDIA Emerging-Optimizers, Megatron-LM and Transformer Engine; lands in [0.978, 1.032].
    "quintic": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    # Polar Express (Amsel et al., 2025, arXiv 2505.16932), all but the last divided by 1.01, 1.01^3, 1.01^5 for safety.
    "polar_express": (
        *(
            (a / 1.01, b / 1.01**3, c / 1.01**5)
            for a, b, c in (
                (8.28721201814563, -23.595886519098837, 17.300387312530933),
                (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
                (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
                (3.3184196573706015, -2.488488024314874, 0.51004894012372),
                (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
                (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
            )
        ),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    ),
    "polish": (POLISH,) * 5,
}
"""Coefficients (a, b, c) of the Newton-Schulz step ``X <- aX + (b XX' + c (XX')^2) X``, by name.

Steps beyond the end of a schedule repeat :data:`POLISH` (``simple`` repeats its own triple)."""


_GRAM_BLOCK = 192
"""Columns of a block in :func:`gram`; between 128 and 384 it makes little difference."""


class Svd(NamedTuple):
    """Leading part of a singular value decomposition, singular values in descending order.

    ``u`` and ``vt`` hold the first ``rank`` vectors, ``s`` all singular values.
    """

    u: Float[Tensor, "rows rank"]
    s: Float[Tensor, " short"]
    vt: Float[Tensor, "rank columns"]


def gram(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "columns columns"]:
    """``matrix' matrix``, of which only the lower half is computed, in two thirds of the time of the whole."""
    columns = matrix.shape[1]
    product = matrix.new_empty(columns, columns)
    for first in range(0, columns, _GRAM_BLOCK):
        part = slice(first, first + _GRAM_BLOCK)
        strip = torch.mm(matrix[:, part].mT, matrix[:, : part.stop])
        product[part, : part.stop] = strip
        product[:first, part] = strip[:, :first].mT
    return product


def noise_cut(largest: float, floor: float) -> float:
    """Singular values up to this are noise: :data:`RANK_TOLERANCE` and ``floor``, as far as :data:`NOISE_SHARE` lets.

    Args:
        largest: the largest singular value.
        floor: size of singular values that are noise.
    """
    return min(max(RANK_TOLERANCE * largest, floor), NOISE_SHARE * largest)


def thin_svd(
    matrix: Float[Tensor, "rows columns"], rank: int | None = None, floor: float = 0.0, largest: float | None = None
) -> Svd:
    """Thin SVD by the eigendecomposition of the Gram matrix of the short side.

    Two to six times faster than LAPACK's SVD. Singular values and the products ``u s vt`` of leading triplets are
    good to 1e-10 of the largest singular value on well-conditioned input; a singular value of relative size x has a
    relative error of about 1e-16 / x^2. Triplets below :data:`RANK_TOLERANCE` or ``floor`` are returned as zeros, so
    that directions which are only rounding noise can never be scaled up.

    Args:
        matrix: any real matrix.
        rank: number of singular vectors wanted; all ``min(rows, columns)`` by default.
        floor: size of singular values that are noise; at most a tenth of the largest is taken for that.
        largest: singular value that all cuts are relative to, for the remainder of a larger matrix; by default the
            matrix's own largest.

    Returns:
        In float64.
    """
    tall = matrix.shape[0] >= matrix.shape[1]
    a = matrix.to(torch.float64)
    a = a if tall else a.mT
    s, vectors = _short_side(a, floor, largest)
    leading = s[:rank]
    v = vectors[:, : len(leading)] * (leading > 0)
    u = (a @ v) / torch.where(leading > 0, leading, 1.0)
    return Svd(u, s, v.mT) if tall else Svd(v, s, u.mT)


def levelled(matrix: Float[Tensor, "rows columns"], floor: float = 0.0) -> Float[Tensor, "rows columns"]:
    """The matrix with all singular values that :func:`thin_svd` finds brought to their mean; the others stay zero.

    One product less than multiplying the singular vectors out, good to 1e-10 on well-conditioned input.

    Args:
        matrix: any real matrix.
        floor: size of singular values that are noise, as in :func:`thin_svd`.

    Returns:
        In float64.
    """
    tall = matrix.shape[0] >= matrix.shape[1]
    a = matrix.to(torch.float64)
    s, v = _short_side(a if tall else a.mT, floor)
    there = s > 0
    mean = s.sum() / there.sum().clamp_min(1)
    middle = (v * torch.where(there, mean / torch.where(there, s, 1.0), 0.0)) @ v.mT
    return a @ middle if tall else middle @ a


def _short_side(a: Float[Tensor, "rows columns"], floor: float, largest: float | None = None) -> tuple[Tensor, Tensor]:
    """Singular values in descending order, zero where they are noise, and the right singular vectors."""
    eigenvalues, vectors = torch.linalg.eigh(gram(a))
    s = eigenvalues.flip(-1).clamp_min(0).sqrt()
    top = float(s[0]) if largest is None else largest
    return torch.where(s > noise_cut(top, floor), s, 0.0), vectors.flip(-1)


def leading_part(matrix: Float[Tensor, "rows columns"], rank: int) -> Float[Tensor, "rows columns"]:
    """The best approximation of that rank (Eckart and Young): the leading singular triplets multiplied out.

    By projection on the leading singular vectors of the short side, from :func:`randomised_svd` when the rank is a
    small share of it and the spectrum decays, else from the Gram matrix. Good to 1e-8 of the matrix where the singular
    values on either side of the cut differ by more than a thousandth; where they are equal, the choice is arbitrary.

    Args:
        matrix: any real matrix.
        rank: number of triplets; 0 gives zeros, the short side or more the matrix.

    Returns:
        In float64.
    """
    a = matrix.to(torch.float64)
    short = min(a.shape)
    if rank <= 0:
        return torch.zeros_like(a)
    if rank >= short:
        return a.clone()
    found = randomised_svd(a, rank) if _RANDOMISED_GAIN * (rank + _OVERSAMPLING) <= short else None
    if found is not None:
        return (found.u * found.s) @ found.vt
    tall = a.shape[0] >= a.shape[1]
    a = a if tall else a.mT
    _, vectors = torch.linalg.eigh(gram(a))
    v = vectors[:, -rank:]
    part = (a @ v) @ v.mT
    return part if tall else part.mT.contiguous()


_OVERSAMPLING = 8
_RANDOMISED_GAIN = 8  # how many times the sketch must fit the short side before a randomised SVD pays


def randomised_svd(
    matrix: Float[Tensor, "rows columns"], rank: int, power_steps: int = 8, tolerance: float = 1e-9
) -> Svd | None:
    """Leading singular triplets by subspace iteration from a random start, or None when they cannot be trusted.

    Halko, Martinsson and Tropp, 2011, algorithms 4.4 and 5.1, with 8 vectors to spare and a fixed seed. After every
    step the residuals ``|A v_i - s_i u_i|`` are compared with the gap between singular values ``rank`` and
    ``rank + 1``, since their quotient bounds the angle to the true subspace (Davis and Kahan): only when it is below
    ``tolerance`` the triplets are returned; when the pace says that it will not be, the search ends at once. They are
    then as good as those of :func:`thin_svd`: their product is within 1e-8 of the best approximation, relative to the
    largest singular value. Flat spectra never pass.

    Args:
        matrix: any real matrix with a short side of more than ``rank + 8``.
        rank: number of triplets wanted.
        power_steps: largest number of steps.
        tolerance: largest quotient of residual and gap.
    """
    a = matrix.to(torch.float64)
    width = rank + _OVERSAMPLING
    start = torch.randn(a.shape[1], width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q = torch.linalg.qr(a @ start.to(a.device))[0]
    before = torch.inf
    for left in reversed(range(power_steps)):
        q = torch.linalg.qr(a @ torch.linalg.qr(a.mT @ q)[0])[0]
        small = q.mT @ a
        u, s, vt = torch.linalg.svd(small, full_matrices=False)
        u = q @ u[:, :rank]
        residual = torch.linalg.matrix_norm(a @ vt[:rank].mT - u * s[:rank])
        gap = s[rank - 1] - s[rank]
        if residual <= tolerance * gap:
            return Svd(u, s[:rank], vt[:rank])
        if residual * (residual / before) ** left > tolerance * gap:
            return None  # at this pace it will not get there
        before = float(residual)
    return None


def left_basis(matrices: Sequence[Float[Tensor, "rows columns"]], floor: float = 0.0) -> Float[Tensor, "rows rank"]:
    """Orthonormal basis of the columns of all matrices, strongest direction first: left singular vectors of the stack.

    From the Gram matrix of the stack's short side; directions below :data:`RANK_TOLERANCE` or ``floor`` (as in
    :func:`thin_svd`) are left out.
    """
    rows, columns = matrices[0].shape
    if rows > len(matrices) * columns:
        u, s, _ = thin_svd(torch.cat(list(matrices), dim=1), floor=floor)
        return u[:, s > 0]
    total = matrices[0].new_zeros(rows, rows, dtype=torch.float64)
    for matrix in matrices:
        total += gram(matrix.to(torch.float64).mT)
    eigenvalues, vectors = torch.linalg.eigh(total)
    largest = float(eigenvalues[-1].clamp_min(0)) ** 0.5
    return vectors[:, eigenvalues > noise_cut(largest, floor) ** 2].flip(-1)


def orthogonalise(
    matrix: Float[Tensor, "rows columns"],
    method: Orthogonalizer = "gram_polar",
    schedule: str = "quintic",
    steps: int = 5,
) -> Float[Tensor, "rows columns"]:
    """The matrix with all singular values brought to 1: orthonormal columns if it is tall, rows if it is wide.

    Args:
        matrix: for example the singular vectors of several experts side by side.
        method: ``polar`` (from LAPACK's SVD), ``gram_polar`` (the same from the Gram matrix of the short side) or
            ``newton_schulz`` (``steps`` Newton-Schulz iterations, which leave nearly dependent directions damped
            instead of blowing them up to 1).
        schedule: coefficients of the iterations, a key of :data:`SCHEDULES`.
        steps: number of iterations.

    Returns:
        In float64. ``polar`` and ``gram_polar`` give a partial isometry: directions below a relative cut-off of 1e-5
        stay zero, so that dependent columns (duplicate experts) do not bring in arbitrary ones. They agree to 1e-10
        when all singular values are above a hundredth of the largest. ``newton_schulz`` equals the literal
        iteration in float64 to 1e-9.
    """
    a = matrix.to(torch.float64)
    if method == "polar":
        u, s, vt = torch.linalg.svd(a, full_matrices=False)
        keep = (s > 1e-5 * s[:1]).to(a.dtype)
        return (u * keep) @ vt
    if method == "gram_polar":
        return _apply_to_singular_values(a, _inverse_root)
    if method == "newton_schulz":
        triples = schedule_steps(schedule, steps)
        return _apply_to_singular_values(a, lambda squares: _newton_schulz_gain(squares, triples))
    raise ValueError(f"unknown orthogonalizer {method!r}")


def schedule_steps(schedule: str, steps: int) -> tuple[Triple, ...]:
    """The first ``steps`` coefficient triples of a schedule."""
    triples = SCHEDULES[schedule]
    filler = triples[-1] if schedule == "simple" else POLISH
    return (*triples[:steps], *[filler] * (steps - len(triples)))


def _apply_to_singular_values(
    a: Float[Tensor, "rows columns"], gain: Callable[[Float[Tensor, " short"]], Float[Tensor, " short"]]
) -> Float[Tensor, "rows columns"]:
    """``U diag(s g(s^2)) V'`` for ``a = U diag(s) V'``, by one eigendecomposition on the short side."""
    tall = a.shape[0] >= a.shape[1]
    eigenvalues, vectors = torch.linalg.eigh(gram(a if tall else a.mT))
    middle = (vectors * gain(eigenvalues.clamp_min(0))) @ vectors.mT
    return a @ middle if tall else middle @ a


def _inverse_root(squares: Float[Tensor, " short"]) -> Float[Tensor, " short"]:
    # Eigenvalues are squared singular values: 1e-10 here is a cut-off of 1e-5 there.
    keep = squares > 1e-10 * squares.max()
    return torch.where(keep, squares.clamp_min(torch.finfo(squares.dtype).tiny).rsqrt(), 0.0)


def _newton_schulz_gain(squares: Float[Tensor, " short"], triples: Sequence[Triple]) -> Float[Tensor, " short"]:
    """What Newton-Schulz multiplies singular values of these ``squares`` by.

    The iteration starts from ``X / (|X|_F + 1e-7)``, and each step is a polynomial in ``X X'``; on the eigenvectors
    of the Gram matrix it therefore acts on each eigenvalue by itself, and one eigendecomposition replaces all its
    matrix products.
    """
    norm = squares.sum().sqrt() + 1e-7
    gains = torch.ones_like(squares) / norm
    for a, b, c in triples:
        square = squares * gains**2
        gains = gains * (a + b * square + c * square**2)
    return gains
