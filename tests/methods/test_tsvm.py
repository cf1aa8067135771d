"""TSV-M and BoostedTSV-M: spectral identities that hold exactly, and an oracle with LAPACK's SVD."""

from __future__ import annotations

import pytest
import torch

from nemo_merge import methods
from nemo_merge.linalg import SCHEDULES
from nemo_merge.methods import TaskVectors
from nemo_merge.methods.boosted_tsvm import boosted

POLAR = {"orthogonalizer": "polar"}


def combine(method: str, deltas: list[torch.Tensor], **parameters) -> torch.Tensor:
    weights = torch.ones(len(deltas), dtype=torch.float64)
    return methods.get(method, **parameters).combine_matrix(TaskVectors(torch.zeros_like(deltas[0]), deltas, weights))


def random(rows: int, columns: int, experts: int) -> list[torch.Tensor]:
    return list(torch.randn(experts, rows, columns, dtype=torch.float64))


def oracle(deltas, rank_fraction=None, beta=1.0, power=1, scope="full", steps=None, schedule="quintic"):
    """The method from its formulas, with full SVDs and the literal Newton-Schulz iteration."""
    short = min(deltas[0].shape)
    k = max(1, int((rank_fraction or 1 / len(deltas)) * short + 1e-9))
    us, ss, vs = [], [], []
    for delta in deltas:
        u, s, vt = torch.linalg.svd(delta, full_matrices=False)
        energy = (s if scope == "full" else s[:k]) ** power
        if beta < 1:
            level = next(i for i in range(len(energy)) if energy[: i + 1].sum() / energy.sum() >= beta - 1e-12)
            s = torch.maximum(s, s[level])
        us.append(u[:, :k])
        ss.append(s[:k])
        vs.append(vt[:k])

    def orth(x):
        if steps is None:
            u, s, vt = torch.linalg.svd(x, full_matrices=False)
            return u[:, s > 1e-5 * s[0]] @ vt[s > 1e-5 * s[0]]
        flip = x.shape[0] > x.shape[1]
        x = x.mT if flip else x
        x = x / (x.norm() + 1e-7)
        for a, b, c in SCHEDULES[schedule][:steps]:
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x.mT if flip else x

    return orth(torch.cat(us, 1)) @ torch.diag(torch.cat(ss)) @ orth(torch.cat(vs, 0))


@pytest.mark.parametrize("shape", [(30, 30), (48, 20), (20, 48)])
@pytest.mark.parametrize("experts", [1, 2, 4])
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"rank_fraction": 0.5},
        {"beta": 0.1},
        {"beta": 0.4, "energy_power": 2},
        {"beta": 0.4, "energy_scope": "kept"},
    ],
    ids=str,
)
@pytest.mark.parametrize("orthogonalizer", ["polar", "gram_polar", "newton_schulz"])
def test_agrees_with_the_oracle(shape, experts, parameters, orthogonalizer):
    deltas = random(*shape, experts)
    expected = oracle(
        deltas,
        parameters.get("rank_fraction"),
        parameters.get("beta", 0.3),
        parameters.get("energy_power", 1),
        parameters.get("energy_scope", "full"),
        5 if orthogonalizer == "newton_schulz" else None,
    )
    result = combine("boosted_tsvm", deltas, orthogonalizer=orthogonalizer, **parameters)
    assert float((result - expected).norm() / expected.norm()) < 1e-8


def test_beta_of_one_is_tsvm_to_the_bit():
    deltas = random(24, 16, 3)
    assert torch.equal(combine("boosted_tsvm", deltas, beta=1.0), combine("tsvm", deltas))


@pytest.mark.parametrize("method", ["tsvm", "boosted_tsvm"])
def test_singular_values_of_the_result_are_the_kept_ones(method):
    """Both bases are orthonormal, so the product already is an SVD: the strongest statement there is."""
    deltas = random(40, 24, 3)
    kept = []
    for delta in deltas:
        s = torch.linalg.svdvals(delta)
        kept.append((boosted(s, 0.3, 1, len(s)) if method == "boosted_tsvm" else s)[:8])
    expected = torch.cat(kept).sort(descending=True).values
    landed = torch.linalg.svdvals(combine(method, deltas, **POLAR))
    torch.testing.assert_close(landed, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("orthogonalizer", ["polar", "gram_polar", "newton_schulz"])
def test_four_equal_experts_give_their_common_truncation(orthogonalizer):
    """A second SVD as orthogonaliser fills the null space with arbitrary directions and ends 173 % away."""
    (delta,) = random(32, 32, 1)
    u, s, vt = torch.linalg.svd(delta)
    truncation = u[:, :8] * s[:8] @ vt[:8]
    result = combine("tsvm", [delta] * 4, orthogonalizer=orthogonalizer)
    tolerance = 0.15 if orthogonalizer == "newton_schulz" else 1e-9
    assert float((result - truncation).norm() / truncation.norm()) < tolerance


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_all_triplets_of_square_matrices_give_the_mean(beta):
    deltas = random(20, 20, 4)
    result = combine("boosted_tsvm", deltas, rank_fraction=1.0, beta=beta, **POLAR)
    mean = torch.stack(deltas).mean(0)
    if beta < 1:
        parts = [torch.linalg.svd(delta) for delta in deltas]
        mean = torch.stack([u * boosted(s, beta, 1, len(s)) @ vt for u, s, vt in parts]).mean(0)
    assert float((result - mean).norm() / mean.norm()) < 1e-9


def test_experts_in_disjoint_blocks_are_summed():
    deltas = []
    for index in range(3):
        delta = torch.zeros(30, 24, dtype=torch.float64)
        delta[10 * index : 10 * index + 10, 8 * index : 8 * index + 8] = torch.randn(10, 8)
        deltas.append(delta)
    result = combine("tsvm", deltas, **POLAR)
    expected = sum(deltas)
    assert float((result - expected).norm() / expected.norm()) < 1e-9


def test_the_nuclear_norm_falls_as_beta_rises():
    deltas = random(36, 30, 3)
    norms = [
        float(torch.linalg.svdvals(combine("boosted_tsvm", deltas, beta=beta, **POLAR)).sum())
        for beta in (0, 0.1, 0.3, 0.5, 1)
    ]
    assert norms == sorted(norms, reverse=True)
    assert norms[0] > norms[-1]


@pytest.mark.parametrize(("orthogonalizer", "bound"), [("polar", 1.0), ("newton_schulz", 1.3112)])
def test_the_result_is_no_larger_than_the_largest_expert(orthogonalizer, bound):
    deltas = [*random(20, 20, 1) * 2, *random(20, 20, 1)]  # two equal experts and another one
    result = combine("tsvm", deltas, orthogonalizer=orthogonalizer)
    largest = max(float(torch.linalg.matrix_norm(delta, 2)) for delta in deltas)
    assert float(torch.linalg.matrix_norm(result, 2)) <= bound * largest * (1 + 1e-9)


def test_more_experts_than_the_rank_allows_keep_one_direction_each():
    deltas = random(6, 4, 9)
    result = combine("tsvm", deltas)
    assert torch.isfinite(result).all()
    assert float(result.norm()) > 0


@pytest.mark.parametrize(
    ("values", "beta", "power", "scope", "expected"),
    [
        ([4, 3, 2, 1], 0.3, 1, 4, [4, 4, 4, 4]),  # 4/10 reaches 0.3 at once
        ([4, 3, 2, 1], 0.5, 1, 4, [4, 3, 3, 3]),  # 7/10 is the first at 0.5
        ([4, 3, 2, 1], 1.0, 1, 4, [4, 3, 2, 1]),
        ([4, 3, 2, 1], 0.0, 1, 4, [4, 4, 4, 4]),
        ([4, 3, 2, 1], 0.6, 2, 4, [4, 3, 3, 3]),  # 16/30, then 25/30
        ([4, 3, 2, 1], 0.6, 1, 2, [4, 3, 3, 3]),  # of 4 + 3 only
        ([2, 1, 0, 0], 0.9, 1, 4, [2, 1, 0, 0]),  # what is zero stays zero
        ([0, 0], 0.3, 1, 2, [0, 0]),
    ],
)
def test_boosting_by_hand(values, beta, power, scope, expected):
    s = torch.tensor(values, dtype=torch.float64)
    assert boosted(s, beta, power, scope).tolist() == expected
