"""Measures against slow straight formulas in numpy and scipy, and what must hold for any experts."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from nemo_merge.checkpoints import StateDictCheckpoint
from nemo_merge.errors import ConfigError, PlanError
from nemo_merge.linalg import Svd, thin_svd
from nemo_merge.merging.analysis import Analysis, measure
from nemo_merge.merging.measures import CURVE, interference, measure_entries, measure_matrices, measure_tall, spectrum
from tests.fixtures.models import StateDict, family

MATRIX = "encoder.layers.0.feed_forward1.linear1.weight"
HEAD = "decoder.decoder_layers.0.weight"
VARIANCE = "encoder.layers.0.conv.batch_norm.running_var"


def analysed(base: StateDict, experts: list[StateDict], **options) -> Analysis:
    return measure(
        StateDictCheckpoint(base, "base"),
        [StateDictCheckpoint(expert, f"expert {index}") for index, expert in enumerate(experts)],
        **options,
    )


def found(analysis: Analysis, name: str):
    return next(tensor for tensor in analysis.tensors if tensor.name == name)


def deltas_of(base: StateDict, experts: list[StateDict], name: str) -> np.ndarray:
    return np.stack([(expert[name].double() - base[name].double()).numpy().ravel() for expert in experts])


@pytest.fixture(scope="module")
def exact() -> tuple[StateDict, list[StateDict]]:
    """A family in float64, where storage adds no noise."""
    base, experts = family(4)
    return (
        {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in base.items()},
        [{name: t.double() if t.is_floating_point() else t for name, t in expert.items()} for expert in experts],
    )


@pytest.fixture(scope="module")
def analysis(exact) -> Analysis:
    return analysed(*exact)


def test_norms_and_inner_products_of_every_tensor(exact, analysis):
    for tensor in analysis.tensors:
        deltas = deltas_of(*exact, tensor.name)
        np.testing.assert_allclose(tensor.measures.gram, deltas @ deltas.T, rtol=1e-12, atol=1e-18)
        np.testing.assert_allclose(tensor.norms, np.linalg.norm(deltas, axis=1), rtol=1e-12)
        assert tensor.measures.base == pytest.approx(float(exact[0][tensor.name].double().square().sum()), rel=1e-12)


def test_counters_and_constants_are_left_out_and_statistics_do_not_count(exact, analysis):
    names = {tensor.name for tensor in analysis.tensors}
    assert {name.split(".")[-1] for name in exact[0].keys() - names} == {"window", "fb", "num_batches_tracked"}
    trained = [tensor.name for tensor in analysis.trained]
    assert names - set(trained) == {VARIANCE, VARIANCE.replace("var", "mean")}
    whole = np.concatenate([deltas_of(*exact, name) for name in trained], axis=1)
    np.testing.assert_allclose(analysis.total.gram, whole @ whole.T, rtol=1e-12, atol=1e-18)
    unit = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(analysis.total.cosines, unit @ unit.T, atol=1e-12)
    base = math.sqrt(sum(float(exact[0][name].square().sum()) for name in trained))
    np.testing.assert_allclose(analysis.total.relative_norms, np.linalg.norm(whole, axis=1) / base, rtol=1e-12)
    projected = [(whole.mean(0) @ delta) / (delta @ delta) for delta in whole]
    np.testing.assert_allclose(analysis.total.kept_by_mean, projected, rtol=1e-10)


def test_modules_and_blocks_are_sums_of_their_tensors(analysis):
    assert list(analysis.modules) == ["encoder", "head"]
    assert sum(part.gram for part in analysis.modules.values()).allclose(analysis.total.gram)
    assert sum(len(part.tensors) for part in analysis.modules.values()) == len(analysis.trained)
    assert list(analysis.depths) == ["encoder"]
    assert list(analysis.depths["encoder"]) == [0]
    assert all(tensor.name.startswith("encoder.layers.0.") for tensor in analysis.depths["encoder"][0].tensors)


@pytest.mark.parametrize("shape", [(), (1,), (50,), (40, 30), (7, 5, 3)])
@pytest.mark.parametrize("experts", [2, 3, 5])
def test_sign_conflicts(shape, experts):
    base = torch.randn(shape)
    changes = torch.randn(experts, *shape) * (torch.rand(experts, *shape) < 0.8)
    measures = measure_entries("w", base, list(base + changes))
    deltas = (base + changes - base).reshape(experts, -1).numpy()
    size = deltas.shape[1]
    keep = np.zeros_like(deltas, dtype=bool)
    for expert, delta in enumerate(deltas):
        order = sorted(range(size), key=lambda index: (-abs(delta[index]), index))
        keep[expert, order[: int(0.2 * size + 1e-9)]] = True
    for signs, kept in ((measures.signs, np.sign(deltas)), (measures.top_signs, np.sign(deltas) * keep)):
        for i, j in itertools.combinations(range(experts), 2):
            assert signs.both[i, j] == sum(a != 0 and b != 0 for a, b in zip(kept[i], kept[j], strict=True))
            assert signs.opposite[i, j] == sum(a * b < 0 for a, b in zip(kept[i], kept[j], strict=True))
        columns = [set(column) - {0} for column in kept.T]
        several = [(column != 0).sum() >= 2 for column in kept.T]
        assert signs.several == sum(several)
        assert signs.disputed == sum(len(column) == 2 for column in columns)


def test_large_tensors_go_in_blocks():
    base = torch.randn(700, 1000)
    experts = [base + 0.1 * torch.randn(700, 1000) for _ in range(2)]
    measures = measure_entries("w", base, experts, rows=True)
    deltas = torch.stack(experts).double() - base.double()
    np.testing.assert_allclose(measures.gram, np.einsum("iab,jab->ij", deltas, deltas), rtol=1e-12)
    product = deltas.prod(0)
    assert measures.signs.pairwise == pytest.approx(float((product < 0).sum() / (product != 0).sum()))
    energies = deltas.square().sum(2).sort(dim=1, descending=True).values
    np.testing.assert_allclose(measures.top_rows, energies[:, :7].sum(1) / energies.sum(1), rtol=1e-12)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (25, 25), (1, 9), (300, 6)])
@pytest.mark.parametrize("how", ["matrices", "tall"])
def test_spectra(shape, how):
    base, expert = torch.randn(2, *shape, dtype=torch.float64)
    rank = max(1, min(shape) // 3)
    (got,) = measure_matrices(base, [expert], rank)[0] if how == "matrices" else measure_tall(base, [expert], rank)
    s = scipy.linalg.svdvals((expert - base).numpy())
    p = s / s.sum()
    assert got.effective_rank == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-8)
    assert got.stable_rank == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-8)
    assert got.kept == pytest.approx((s[:rank] ** 2).sum() / (s**2).sum(), rel=1e-8)
    assert got.rank_90 == next(k for k in range(1, len(s) + 1) if (s[:k] ** 2).sum() >= 0.9 * (s**2).sum())
    places = np.linspace(0, len(s) - 1, CURVE)
    np.testing.assert_allclose(got.curve, np.interp(places, np.arange(len(s)), s / s[0]), atol=1e-7)


@pytest.mark.parametrize("how", [measure_tall, lambda *args: measure_matrices(*args)[0]])
def test_rounding_of_storage_is_no_rank(how):
    """A change of rank 2 stored in float32 has full rank; only two of its singular values are told from rounding."""
    base = torch.randn(200, 40)
    change = torch.randn(200, 2) @ torch.randn(2, 40)
    (got,) = how(base, [base + 1e-4 * change], 2)
    assert got.effective_rank <= 2
    assert got.kept == pytest.approx(1)


def test_a_task_vector_of_zeros_has_no_rank():
    assert spectrum(torch.zeros(5), 2)[:4] == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("shape", "rank", "experts"), [((20, 20), 5, 3), ((30, 12), 4, 2), ((8, 24), 8, 3), ((5, 9), 1, 4)]
)
def test_singular_task_interference(shape, rank, experts):
    deltas = torch.randn(experts, *shape, dtype=torch.float64)
    _, got = measure_matrices(torch.zeros(shape, dtype=torch.float64), list(deltas), rank)
    parts = [scipy.linalg.svd(delta.numpy(), full_matrices=False) for delta in deltas]
    u = np.hstack([u[:, :rank] for u, _, _ in parts])
    v = np.vstack([vt[:rank] for _, _, vt in parts]).T
    s = np.concatenate([s[:rank] for _, s, _ in parts])
    eye = np.eye(len(s))
    assert got.sti == pytest.approx(np.abs((u.T @ u - eye) @ np.diag(s) @ (v.T @ v - eye)).sum(), rel=1e-8)
    assert got.relative == pytest.approx(got.sti / s.sum(), rel=1e-10)
    overlaps = []
    for (ui, _, vi), (uj, _, vj) in itertools.combinations(parts, 2):
        overlaps.append(np.linalg.norm(ui[:, :rank].T @ uj[:, :rank]) ** 2 / rank)
        overlaps.append(np.linalg.norm(vi[:rank] @ vj[:rank].T) ** 2 / rank)
    assert got.overlap == pytest.approx(np.mean(overlaps), rel=1e-8)


def test_the_overlap_to_expect_of_random_directions():
    overlaps = []
    for _ in range(30):
        _, got = measure_matrices(torch.zeros(30, 20), list(torch.randn(3, 30, 20)), 5)
        overlaps.append(got.overlap)
    assert got.chance == pytest.approx((5 / 30 + 5 / 20) / 2)
    assert np.mean(overlaps) == pytest.approx(got.chance, abs=0.01)


def test_orthogonal_subspaces_do_not_interfere():
    q, r = (torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0] for _ in range(2))
    s = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    deltas = [(q[:, 3 * t : 3 * t + 3] * s) @ r[3 * t : 3 * t + 3] for t in range(4)]
    _, got = measure_matrices(torch.zeros(12, 12, dtype=torch.float64), deltas, 3)
    assert got.sti < 1e-10
    assert got.overlap < 1e-15


@pytest.mark.parametrize("experts", [2, 3, 5])
def test_identical_experts_interfere_fully(experts):
    """With T times the same subspace the blocks off the diagonal are identities: STI is T (T-1)^2 sum(s)."""
    part = thin_svd(torch.randn(15, 10, dtype=torch.float64), 4)
    part = Svd(part.u, part.s[:4], part.vt)
    got = interference([part] * experts)
    assert got.sti == pytest.approx(experts * (experts - 1) ** 2 * float(part.s.sum()), rel=1e-8)
    assert got.overlap == pytest.approx(1)


def test_triplets_of_zeros_count_for_nothing():
    part = thin_svd(torch.randn(9, 9, dtype=torch.float64), 3)
    part = Svd(part.u, part.s[:3], part.vt)
    zeros = Svd(torch.zeros(9, 3).double(), torch.zeros(3).double(), torch.zeros(3, 9).double())
    assert interference([part, zeros]).sti < 1e-9
    assert interference([part, part, zeros]).overlap == pytest.approx(1)


def test_permuted_experts_permute_the_measures(exact, analysis):
    order = [2, 0, 3, 1]
    permuted = analysed(exact[0], [exact[1][place] for place in order])
    torch.testing.assert_close(permuted.total.gram, analysis.total.gram[order][:, order])
    torch.testing.assert_close(permuted.total.top_signs.pairs, analysis.total.top_signs.pairs[order][:, order])
    assert permuted.total.signs.any == analysis.total.signs.any
    for a, b in zip(permuted.tensors, analysis.tensors, strict=True):
        assert [spectrum.effective_rank for spectrum in a.measures.spectra] == pytest.approx(
            [b.measures.spectra[place].effective_rank for place in order] if b.measures.spectra else []
        )
        if b.measures.interference:
            assert a.measures.interference == pytest.approx(b.measures.interference)


def test_a_longer_task_vector_changes_its_norm_only(exact, analysis):
    base, experts = exact
    longer = {name: base[name] + 4 * (value - base[name]) for name, value in experts[1].items()}
    longer[VARIANCE] = experts[1][VARIANCE]
    scaled = analysed(base, [experts[0], longer, *experts[2:]])
    assert float(scaled.total.norms[1] / analysis.total.norms[1]) == pytest.approx(4)
    torch.testing.assert_close(scaled.total.cosines, analysis.total.cosines)
    assert scaled.total.signs.pairs.nan_to_num().allclose(analysis.total.signs.pairs.nan_to_num(), atol=2e-3)
    mine, theirs = found(scaled, MATRIX).measures, found(analysis, MATRIX).measures
    assert mine.spectra[1].effective_rank == pytest.approx(theirs.spectra[1].effective_rank)
    assert mine.interference.overlap == pytest.approx(theirs.interference.overlap)


def test_identical_experts_agree_fully(exact):
    base, experts = exact
    twins = analysed(base, [experts[0], experts[0], experts[0]])
    assert twins.total.cosines.allclose(torch.ones(3, 3, dtype=torch.float64))
    assert twins.total.signs.pairwise == twins.total.top_signs.any == 0
    assert twins.total.kept_by_mean.allclose(torch.ones(3, dtype=torch.float64))
    assert found(twins, MATRIX).measures.interference.overlap == pytest.approx(1)


def test_one_expert_alone(exact):
    alone = analysed(exact[0], exact[1][:1])
    assert math.isnan(alone.total.mean_cosine)
    assert math.isnan(alone.total.signs.pairwise)
    assert found(alone, MATRIX).measures.interference is None
    assert 0 < found(alone, MATRIX).measures.spectra[0].kept < 1
    assert alone.total.kept_by_mean.tolist() == [1]


def test_experts_equal_to_the_base(exact):
    base, experts = exact
    still = analysed(base, [base, base])
    assert not any(tensor.changed for tensor in still.tensors)
    assert not still.total.norms.any()
    assert math.isnan(still.total.mean_cosine)
    assert "no expert differs from the base" in still.warnings[0]
    half = analysed(base, [base, experts[0]])
    assert half.total.norms[0] == 0 < half.total.norms[1]
    assert half.total.cosines[0].isnan().all()
    assert found(half, MATRIX).measures.interference.overlap == 0
    assert len(half.total.spectra) == len([t for t in half.trained if t.measures.spectra])


def test_statistics_follow_the_law_of_total_variance(exact, analysis):
    base, experts = exact
    (drift,) = analysis.drifts
    assert drift.name == "encoder.layers.0.conv.batch_norm"
    mean, variance = (f"{drift.name}.running_{part}" for part in ("mean", "var"))
    means, variances = (np.stack([expert[name] for expert in experts]) for name in (mean, variance))
    shift = np.sqrt((((means - base[mean].numpy()) ** 2) / (base[variance].numpy() + 1e-5)).mean(1))
    np.testing.assert_allclose(drift.shift, shift, rtol=1e-12)
    ratio = np.log((variances + 1e-5) / (base[variance].numpy() + 1e-5))
    np.testing.assert_allclose(drift.factor, np.exp(np.sqrt((ratio**2).mean(1))), rtol=1e-12)
    pooled = (variances + 1e-5 + means**2).mean(0) - means.mean(0) ** 2
    assert drift.between == pytest.approx((1 - (variances + 1e-5).mean(0) / pooled).mean(), rel=1e-9)


def test_types_may_differ(exact):
    base, experts = exact
    mixed = [
        {
            name: tensor.to(dtype) if tensor.is_floating_point() and "preproc" not in name else tensor
            for name, tensor in expert.items()
        }
        for expert, dtype in zip(experts, (torch.float32, torch.bfloat16, torch.float16, torch.float64), strict=True)
    ]
    got = analysed(base, mixed)
    for tensor in got.tensors:
        deltas = deltas_of(base, mixed, tensor.name)
        np.testing.assert_allclose(tensor.measures.gram, deltas @ deltas.T, rtol=1e-10, atol=1e-18)


@pytest.mark.parametrize("workers", [1, 3])
def test_nothing_depends_on_the_number_of_threads(family, workers):
    one, other = analysed(*family, workers=1), analysed(*family, workers=workers)
    for a, b in zip(one.tensors, other.tensors, strict=True):
        assert torch.equal(a.measures.gram, b.measures.gram)
        assert a.measures.interference == b.measures.interference
        assert [s[:4] for s in a.measures.spectra] == [s[:4] for s in b.measures.spectra]


def test_all_that_stands_against_a_merge_is_told_at_once(family):
    base, experts = family
    experts[0][MATRIX][0, 0] = torch.nan
    del experts[1][HEAD]
    experts[2][MATRIX] = experts[2][MATRIX][:-1]
    with pytest.raises(PlanError) as caught:
        analysed(base, experts)
    assert len(caught.value.problems) == 3
    for part in ("NaN", "missing", "another shape"):
        assert part in str(caught.value)


@pytest.mark.parametrize("rank", [0, -0.5, 1.5])
def test_ranks_out_of_range(family, rank):
    with pytest.raises(ConfigError, match="rank="):
        analysed(*family, rank=rank)


def test_a_base_and_an_expert_are_needed(family):
    base, experts = family
    with pytest.raises(ConfigError, match="needs a base"):
        measure(None, [StateDictCheckpoint(experts[0], "a")])
    with pytest.raises(ConfigError, match="needs one or more experts"):
        measure(StateDictCheckpoint(base, "base"), [])
