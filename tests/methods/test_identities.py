"""What methods have in common: identities between them, and what each must give where the answer is known."""

from __future__ import annotations

import pytest
import torch

from nemo_merge import merge_state_dicts, methods
from nemo_merge.errors import MergeError
from nemo_merge.linalg import thin_svd
from tests.fixtures.models import family, same
from tests.methods.test_properties import NAME, close, merged, random_deltas


def change(method: str, deltas: list[torch.Tensor], base: torch.Tensor | None = None, **parameters) -> torch.Tensor:
    """The merged task vector of one matrix."""
    base = torch.zeros_like(deltas[0]) if base is None else base
    return merged(method, base, [base + delta for delta in deltas], **parameters) - base


# Two ways to say the same: (method, parameters), (method, parameters), shape, relative tolerance.
IDENTITIES = {
    "soup is task arithmetic with 1/T": (("soup", {}), ("task_arithmetic", {}), (12, 8), 1e-12),
    "DELLA without epsilon is DARE": (
        ("della", {"epsilon": 0.0, "combine": "linear"}), ("dare", {}), (12, 8), 1e-12,
    ),
    "DARE that drops nothing is task arithmetic": (("dare", {"density": 1.0}), ("task_arithmetic", {}), (12, 8), 1e-12),
    "LoRS without its sparse part and with full rank is task arithmetic": (
        ("lors", {"density": 0.0, "rank_fraction": 1.0}), ("task_arithmetic", {}), (12, 8), 1e-9,
    ),
    "LoRS without its low-rank part prunes by magnitude": (
        ("lors", {"rank": 0, "density": 0.3}), ("breadcrumbs", {"outliers": 0.0, "density": 0.3}), (12, 8), 1e-9,
    ),
    "CART with full rank is the soup": (("cart", {"rank_fraction": 1.0}), ("soup", {}), (12, 8), 1e-9),
    "TSV-M of square matrices with full rank is the soup": (
        ("tsvm", {"rank_fraction": 1.0, "orthogonalizer": "gram_polar"}), ("soup", {}), (9, 9), 1e-9,
    ),
    "BoostedTSV-M with a beta of 1 is TSV-M": (("boosted_tsvm", {"beta": 1.0}), ("tsvm", {}), (12, 8), 0.0),
    "linear KnOTS is task arithmetic": (("knots", {"combine": "linear"}), ("task_arithmetic", {}), (12, 8), 1e-12),
    "Iso-CTS with everything in common is Iso-C": (("iso_cts", {"common_fraction": 1.0}), ("iso_c", {}), (12, 8), 1e-9),
    "STAR that keeps everything is the soup": (("star", {"energy": 1.0}), ("soup", {}), (12, 8), 1e-9),
    "SCE of two methods of masking agree when nothing is masked": (
        ("sce", {"mask_scope": "all"}), ("sce", {"mask_scope": "weights"}), (12, 8), 0.0,
    ),
    "rows and tensors are the same for one row": (
        ("breadcrumbs", {"granularity": "row"}), ("breadcrumbs", {}), (1, 50), 1e-12,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IDENTITIES)
@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_identity(name, size):
    (one, one_parameters), (other, other_parameters), shape, tolerance = IDENTITIES[name]
    deltas = random_deltas(*shape, 3, size=size)
    assert close(change(one, deltas, **one_parameters), change(other, deltas, **other_parameters), tolerance)


def test_ties_without_trimming_and_conflicts_is_the_mean_over_entries_that_are_not_zero():
    deltas = [delta.abs() for delta in random_deltas(6, 5, 3)]
    for index, delta in enumerate(deltas):
        delta.view(-1)[index::4] = 0
    stack = torch.stack(deltas)
    assert close(change("ties", deltas, density=1.0), stack.sum(0) / (stack != 0).sum(0).clamp_min(1), 1e-12)


@pytest.mark.parametrize("size", [1e-2, 1e-3, 1e-5])
def test_karcher_multislerp_and_soup_agree_for_small_changes(size):
    """The means differ by the square of the relative change, relative to the change."""
    base = torch.randn(30, 20, dtype=torch.float64)
    deltas = random_deltas(30, 20, 4, size=size)
    karcher, multislerp = (change(name, deltas, base) for name in ("karcher", "multislerp"))
    assert close(karcher, multislerp, max(size**2, 1e-9))
    assert close(karcher, change("soup", deltas, base), 3 * size)


def test_karcher_is_where_the_tangents_cancel():
    deltas = random_deltas(8, 6, 4)
    mean = change("karcher", deltas, space="task_vectors").reshape(-1)
    u = mean / mean.norm()
    tangent = torch.zeros_like(u)
    for delta in deltas:
        unit = delta.reshape(-1) / delta.norm()
        cosine = u @ unit
        away = unit - cosine * u
        tangent += torch.atan2(away.norm(), cosine) * away / away.norm() / 4
    assert float(tangent.norm()) < 1e-10
    assert float(mean.norm()) == pytest.approx(sum(float(delta.norm()) for delta in deltas) / 4)


def test_karcher_of_two_is_slerp_halfway():
    a, b = random_deltas(8, 6, 2)
    b = b * a.norm() / b.norm()
    assert close(change("karcher", [a, b], space="task_vectors"), change("nuslerp", [a, b], t=0.5), 1e-10)


@pytest.mark.parametrize("method", ["slerp", "nuslerp"])
@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_slerp_starts_and_ends_at_the_experts_and_keeps_the_norm(method, granularity):
    a, b = random_deltas(6, 9, 2)
    b = b * a.norm(dim=1, keepdim=True) / b.norm(dim=1, keepdim=True)
    at = {t: change(method, [a, b], t=t, granularity=granularity) for t in (0.0, 0.3, 1.0)}
    assert close(at[0.0], a, 1e-12)
    assert close(at[1.0], b, 1e-12)
    assert float(at[0.3].norm()) == pytest.approx(float(a.norm()), rel=1e-9)
    back = change(method, [b, a], t=0.7, granularity=granularity)
    assert close(back, at[0.3], 1e-12)


@pytest.mark.parametrize(("cosine", "t"), [(1.0, 1.0), (0.5, 2 / 3), (0.0, 0.0), (-0.5, 0.0)])
def test_model_stock_goes_as_far_as_the_angle_says(cosine, t):
    a = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[cosine, (1 - cosine**2) ** 0.5, 0.0]], dtype=torch.float64) * 2
    expected = t * (a + b) / 2
    for size in (1.0, 1e-9):
        assert torch.allclose(change("model_stock", [size * a, size * b]), size * expected, rtol=1e-9, atol=size * 1e-9)
    assert torch.allclose(change("model_stock", [a, b], granularity="row"), expected, atol=1e-9)


def test_model_stock_extrapolates_only_when_told():
    a, b = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([[-0.5, 0.75**0.5]], dtype=torch.float64)
    assert close(change("model_stock", [a, b], clamp=False), -2.0 * (a + b) / 2, 1e-9)


@pytest.mark.parametrize("method", ["iso_c", "iso_cts"])
def test_isotropic_methods_flatten_the_spectrum(method):
    deltas = random_deltas(14, 9, 3)
    s = torch.linalg.svdvals(change(method, deltas))
    assert float(s.max() - s.min()) < 1e-8 * float(s.max())
    if method == "iso_c":
        assert float(s.sum()) == pytest.approx(float(torch.linalg.svdvals(sum(deltas)).sum()), rel=1e-9)
        again = change(method, [change(method, deltas)])
        assert close(again, change(method, deltas), 1e-9)


def test_iso_c_leaves_directions_that_are_missing_at_zero():
    deltas = [delta[:, :3] @ delta[:3] for delta in random_deltas(16, 16, 1)]
    s = torch.linalg.svdvals(change("iso_c", deltas))
    assert float(s[3:].max()) < 1e-9 * float(s[0])
    assert float(s[:3].sum()) == pytest.approx(float(torch.linalg.svdvals(deltas[0]).sum()), rel=1e-9)


def test_lors_error_is_that_of_what_it_drops():
    (delta,) = random_deltas(12, 10, 1)
    result = change("lors", [delta], rank=2, density=0.25)
    u, s, vt = torch.linalg.svd(delta, full_matrices=False)
    low_rank = (u[:, :2] * s[:2]) @ vt[:2]
    assert int(((result - low_rank).abs() > 1e-9).sum()) <= int(0.25 * delta.numel())
    kept = int(0.25 * delta.numel()) / delta.numel()
    assert float((delta - result).square().sum()) <= (1 - kept) * float(s[2:].square().sum()) + 1e-9
    assert torch.linalg.matrix_rank(change("lors", [delta], rank=2, density=0.0), rtol=1e-9) == 2


def test_star_keeps_the_nuclear_norm():
    (delta,) = random_deltas(12, 10, 1)
    result = torch.linalg.svdvals(change("star", [delta], energy=0.4))
    assert float(result.sum()) == pytest.approx(float(torch.linalg.svdvals(delta).sum()), rel=1e-9)
    assert int((result > 1e-9).sum()) < 5


@pytest.mark.parametrize("solver", ["closed", "filtered"])
def test_wudi_of_experts_with_separate_inputs_is_their_sum(solver):
    a, b = random_deltas(6, 10, 2)
    a[:, 5:], b[:, :5] = 0, 0
    if solver == "closed":
        assert close(change("wudi", [a, b], solver=solver), a + b, 1e-8)
    loss = {name: wudi_loss(change(method, [a, b], **parameters), [a, b]) for name, method, parameters in (
        ("mean", "soup", {}), ("wudi", "wudi", {"solver": solver}))}  # fmt: skip
    assert loss["wudi"] < 0.5 * loss["mean"]


def wudi_loss(merged_change: torch.Tensor, deltas: list[torch.Tensor]) -> float:
    return sum(float(((merged_change - delta) @ delta.mT).square().sum() / delta.square().sum()) for delta in deltas)


def test_wudi_closed_is_stationary_and_adam_goes_down():
    deltas = random_deltas(7, 5, 3, size=1e-3)
    closed = change("wudi", deltas, solver="closed").requires_grad_()
    loss = sum(((closed - delta) @ delta.mT).square().sum() / delta.square().sum() for delta in deltas)
    (gradient,) = torch.autograd.grad(loss, closed)
    assert float(gradient.norm()) < 1e-9 * sum(float(delta.norm()) for delta in deltas)
    assert wudi_loss(change("wudi", deltas, solver="adam"), deltas) < wudi_loss(sum(deltas), deltas)


def test_knots_ties_does_not_mind_a_rotation_of_the_outputs():
    deltas = random_deltas(9, 14, 3)
    left = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64))[0]
    rotated = change("knots", [left @ delta for delta in deltas])
    assert close(rotated, left @ change("knots", deltas), 1e-8)


def test_pcb_gives_nothing_to_entries_that_no_expert_competes_for():
    deltas = random_deltas(20, 30, 3)
    result = change("pcb", deltas, ratio=0.1)
    assert 0 < int((result != 0).sum()) <= 3 * 60
    largest = torch.stack(deltas).abs().amax(0)
    assert bool((result.abs() <= largest + 1e-6).all())
    assert not close(change("pcb", deltas, variant="paper"), result, 1e-2)


def test_sce_shares_follow_the_energy_of_tiny_task_vectors():
    """Real fine-tuning moves weights by 1e-5: an absolute threshold would weigh all experts alike."""
    a, b = random_deltas(10, 10, 2)
    deltas = [1e-6 * a.abs(), 3e-6 * b.abs()]
    energy = torch.stack([delta.square().sum() for delta in deltas])
    share = energy / energy.sum()
    assert close(change("sce", deltas), share[0] * deltas[0] + share[1] * deltas[1], 1e-9)


@pytest.mark.parametrize("method", ["dare", "della"])
def test_dropping_at_random_keeps_the_expectation(method):
    (delta,) = random_deltas(4, 5, 1)
    draws = 3000  # as rows of one tensor, since ranks are counted in rows
    sample = change(method, [delta.repeat(draws, 1)], density=0.4, combine="linear").view(draws, 4, 5)
    mean, variance = sample.mean(0), sample.var(0)
    assert bool(((mean - delta).abs() <= 5 * (variance / draws).sqrt() + 1e-12).all())
    if method == "dare":
        torch.testing.assert_close(variance, delta.square() * 0.6 / 0.4, rtol=0.15, atol=0)
    else:
        kept = delta.square() / (variance + delta.square())  # the probability, from the variance (1 - p) / p
        order = delta.abs().argsort(dim=1)
        assert bool((kept.gather(1, order)[:, 0] < kept.gather(1, order)[:, -1]).all())


def test_random_numbers_do_not_depend_on_other_tensors_or_their_order():
    base, experts = family()
    whole = merge_state_dicts(base, experts, "dare", seed=3)
    turned = [dict(reversed(model.items())) for model in (base, *experts)]
    assert same(merge_state_dicts(turned[0], turned[1:], "dare", seed=3), whole)
    assert not torch.equal(merge_state_dicts(base, experts, "dare", seed=4)[NAME], whole[NAME])


def test_breadcrumbs_keeps_exactly_so_many_and_no_outlier():
    (delta,) = random_deltas(10, 10, 1)
    result = change("breadcrumbs", [delta], density=0.5, outliers=0.05)
    magnitudes = delta.abs().flatten().sort(descending=True).values
    assert int((result != 0).sum()) == 50
    assert float(result.abs().max()) == pytest.approx(float(magnitudes[5]))
    rows = change("breadcrumbs", [delta], density=0.5, outliers=0.1, granularity="row")
    assert (rows != 0).sum(1).tolist() == [5] * 10


@pytest.mark.parametrize("seed", range(9))
@pytest.mark.parametrize("size", [1e-2, 1e-3, 1e-4])
def test_karcher_in_float32_is_good_to_the_last_digit(seed, size):
    """Iterating on float32 weights with arccos is off by half the change in some of these cases."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(256, generator=generator)
    experts = [base + size * torch.randn(256, generator=generator) for _ in range(4)]
    found = merge_state_dicts({"w": base}, [{"w": expert} for expert in experts], "karcher")["w"].double() - base
    exact = (
        merge_state_dicts({"w": base.double()}, [{"w": expert.double()} for expert in experts], "karcher")["w"]
        - base.double()
    )
    assert close(found, exact, 1e-7 / size + 1e-6)


def test_two_equal_experts_and_another_stay_bounded_in_every_spectral_method():
    a, b = random_deltas(12, 12, 2)
    for name in methods.names():
        if issubclass(methods.method_class(name), methods.SpectralMethod):
            result = change(name, [a, a, b])
            assert torch.isfinite(result).all()
            assert float(torch.linalg.matrix_norm(result, 2)) <= 3 * float(torch.linalg.matrix_norm(sum([a, a, b]), 2))


def test_opposite_experts_have_no_mean_direction():
    (delta,) = random_deltas(4, 4, 1)
    with pytest.raises(MergeError, match="opposite directions"):
        change("karcher", [delta, -delta], space="task_vectors")


def test_task_vectors_of_rank_one_stay_of_rank_one():
    deltas = [delta[:, :1] @ delta[:1] for delta in random_deltas(8, 6, 1)]
    for name in ("tsvm", "boosted_tsvm", "iso_c", "lors", "star"):
        assert int((thin_svd(change(name, deltas * 3)).s > 0).sum()) == 1, name


@pytest.mark.parametrize("size", [1e-3, 1e-5])
@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_opposite_task_vectors_stored_in_float32_do_not_blow_up(size, factor):
    generator = torch.Generator().manual_seed(0)
    base, delta = torch.randn(2, 40, 30, generator=generator) * torch.tensor([0.05, size])[:, None, None]
    experts = [{NAME: base + delta}, {NAME: base - factor * delta}]
    result = merge_state_dicts({NAME: base}, experts, "nuslerp", t=0.3)[NAME] - base
    assert close(result, (0.7 - 0.3 * factor) * delta, 1e-2, delta)
