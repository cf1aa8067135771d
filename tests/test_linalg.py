"""The spectral kernels against LAPACK and against the literal iteration, to the accuracy that they state."""

from __future__ import annotations

import pytest
import torch

from nemo_merge.linalg import (
    POLISH,
    RANK_TOLERANCE,
    SCHEDULES,
    gram,
    leading_part,
    left_basis,
    levelled,
    orthogonalise,
    randomised_svd,
    schedule_steps,
    thin_svd,
)

SHAPES = [(40, 40), (60, 25), (25, 60), (1, 7), (7, 1), (1, 1)]


def with_spectrum(rows: int, columns: int, singular_values: torch.Tensor) -> torch.Tensor:
    """A random matrix with the given singular values."""
    k = len(singular_values)
    u = torch.linalg.qr(torch.randn(rows, k, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(columns, k, dtype=torch.float64))[0]
    return u * singular_values @ v.mT


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_thin_svd_agrees_with_lapack(shape):
    matrix = torch.randn(shape, dtype=torch.float64)
    u, s, vt = thin_svd(matrix)
    assert relative(s, torch.linalg.svdvals(matrix)) < 1e-12
    assert relative(u * s @ vt, matrix) < 1e-10
    assert relative(u.mT @ u, torch.eye(len(s), dtype=torch.float64)) < 1e-8


@pytest.mark.parametrize("shape", [(5, 3), (300, 192), (40, 193), (700, 500), (3, 0)])
def test_gram_is_the_product(shape):
    a = torch.randn(*shape, dtype=torch.float64)
    for matrix in (a, a.mT.contiguous().mT):
        torch.testing.assert_close(gram(matrix), a.mT @ a, rtol=1e-12, atol=1e-12)


def test_thin_svd_of_a_given_rank_is_the_best_approximation():
    matrix = with_spectrum(50, 30, torch.linspace(5, 0.1, 30, dtype=torch.float64))
    u, s, vt = thin_svd(matrix, 7)
    assert u.shape == (50, 7)
    assert vt.shape == (7, 30)
    assert s.shape == (30,)
    error = torch.linalg.matrix_norm(matrix - u * s[:7] @ vt)
    assert error == pytest.approx(float(s[7:].norm()), rel=1e-9)


def test_thin_svd_gives_no_direction_to_noise():
    matrix = with_spectrum(30, 20, torch.tensor([1.0, 0.5, RANK_TOLERANCE / 10], dtype=torch.float64))
    u, s, vt = thin_svd(matrix)
    assert int((s > 0).sum()) == 2
    assert not u[:, 2:].any()
    assert not vt[2:].any()


def test_thin_svd_of_zero_is_zero():
    u, s, vt = thin_svd(torch.zeros(4, 3))
    assert not s.any()
    assert torch.isfinite(u).all()
    assert torch.isfinite(vt).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_levelled_is_the_mean_singular_value_times_the_polar_factor(shape):
    matrix = torch.randn(shape, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    assert relative(levelled(matrix), s.mean() * u @ vt) < 1e-10


def test_levelled_leaves_missing_directions_at_zero():
    matrix = with_spectrum(30, 20, torch.tensor([1.0, 0.5, RANK_TOLERANCE / 10], dtype=torch.float64))
    s = torch.linalg.svdvals(levelled(matrix))
    assert s[:2].tolist() == pytest.approx([0.75, 0.75])
    assert float(s[2]) < 1e-5
    assert not levelled(torch.zeros(4, 3)).any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["polar", "gram_polar"])
def test_polar_factor_is_orthonormal_on_its_short_side(shape, method):
    short = min(shape)
    matrix = with_spectrum(*shape, torch.linspace(1, 0.02, short, dtype=torch.float64))
    q = orthogonalise(matrix, method)
    gram = q.mT @ q if shape[0] >= shape[1] else q @ q.mT
    assert relative(gram, torch.eye(short, dtype=torch.float64)) < 1e-9
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    assert relative(q, u @ vt) < 1e-10


@pytest.mark.parametrize("method", ["polar", "gram_polar"])
def test_polar_factor_of_dependent_columns_is_a_partial_isometry(method):
    half = torch.linalg.qr(torch.randn(20, 4, dtype=torch.float64))[0]
    q = orthogonalise(torch.cat([half, half], dim=1), method)
    assert relative(q, torch.cat([half, half], dim=1) / 2**0.5) < 1e-9


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 5, 9])
def test_newton_schulz_equals_the_literal_iteration(schedule, shape, steps):
    matrix = torch.randn(shape, dtype=torch.float64)
    x = matrix if shape[0] <= shape[1] else matrix.mT
    x = x / (x.norm() + 1e-7)
    for a, b, c in schedule_steps(schedule, steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    literal = x if shape[0] <= shape[1] else x.mT
    assert relative(orthogonalise(matrix, "newton_schulz", schedule, steps), literal) < 1e-9


def test_newton_schulz_quintic_lands_where_its_coefficients_say():
    values = torch.logspace(-2.5, 0, 400, dtype=torch.float64)
    matrix = torch.diag(values)
    landed = torch.linalg.svdvals(orthogonalise(matrix / matrix.norm(), "newton_schulz", "quintic", 5))
    normalised = values / values.norm()
    assert float(landed.max()) <= 1.1451
    inside = torch.sort(landed).values[normalised > 0.0024]
    assert float(inside.min()) >= 0.95


def test_polish_converges_to_the_polar_factor():
    matrix = torch.randn(30, 20, dtype=torch.float64)
    exact = orthogonalise(matrix, "gram_polar")
    assert relative(orthogonalise(matrix, "newton_schulz", "polar_express", 14), exact) < 1e-9
    assert schedule_steps("quintic", 7)[-2:] == (POLISH, POLISH)


def test_unknown_orthogonalizer():
    with pytest.raises(ValueError, match="unknown orthogonalizer"):
        orthogonalise(torch.eye(2), "qr")  # type: ignore[arg-type]


SPECTRA = {
    "decays by a power": torch.arange(1, 201, dtype=torch.float64) ** -1.0,
    "decays fast": 0.7 ** torch.arange(200, dtype=torch.float64),
    "noise above a few directions": torch.cat([torch.full((3,), 5.0), torch.linspace(1.0, 0.5, 197)]).double(),
    "flat": torch.ones(200, dtype=torch.float64),
    "low rank": torch.cat([torch.linspace(3.0, 1.0, 3), torch.zeros(197)]).double(),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("rank", [1, 3, 7])
@pytest.mark.parametrize("shape", [(300, 200), (200, 300)])
def test_the_leading_part_is_the_best_approximation(name, rank, shape):
    s = SPECTRA[name]
    matrix = with_spectrum(*shape, s)
    error = (matrix - leading_part(matrix, rank)).norm()
    best = s[rank:].square().sum().sqrt()
    assert abs(float(error - best)) < 1e-8 * float(s[0])
    if s[rank - 1] > 1.001 * s[rank]:
        u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
        assert relative(leading_part(matrix, rank), u[:, :rank] * values[:rank] @ vt[:rank]) < 1e-8


def test_a_randomised_svd_is_used_where_it_is_good_and_nowhere_else():
    fast = randomised_svd(with_spectrum(300, 200, SPECTRA["decays fast"]), 7)
    assert fast is not None
    assert relative(fast.s, SPECTRA["decays fast"][:7]) < 1e-9
    assert randomised_svd(with_spectrum(300, 200, SPECTRA["flat"]), 7) is None
    assert randomised_svd(torch.randn(300, 200, dtype=torch.float64), 7) is None


@pytest.mark.parametrize("rank", [0, 1, 8, 9])
def test_the_leading_part_at_the_ends(rank):
    matrix = torch.randn(8, 12, dtype=torch.float64)
    expected = torch.zeros_like(matrix) if rank == 0 else matrix
    if rank != 1:
        assert torch.equal(leading_part(matrix, rank), expected)
    assert not leading_part(torch.zeros(300, 200), rank).any()


@pytest.mark.parametrize("shape", [(6, 20), (60, 8)])
def test_the_left_basis_spans_all_columns(shape):
    matrices = [torch.randn(shape, dtype=torch.float64) for _ in range(3)]
    matrices[2] = matrices[0] + matrices[1]
    basis = left_basis(matrices)
    assert relative(basis.mT @ basis, torch.eye(basis.shape[1], dtype=torch.float64)) < 1e-8
    assert basis.shape[1] == min(shape[0], 2 * shape[1])
    for matrix in matrices:
        assert relative(basis @ (basis.mT @ matrix), matrix) < 1e-8
