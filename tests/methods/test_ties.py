from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_merge import merge_state_dicts
from nemo_merge.merging.blocks import TensorBlocks
from nemo_merge.methods import _selection
from nemo_merge.methods._selection import largest, share_of
from tests.fixtures.models import family


def test_opposite_equal_entries_cancel():
    base = torch.zeros(1, 3)
    experts = [torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[-1.0, 2.0, 3.0]])]
    result = merge_state_dicts({"w": base}, [{"w": e} for e in experts], "ties", density=1.0)
    assert result["w"].tolist() == [[0.0, 0.0, 3.0]]


def test_no_sign_of_the_change_opposes_the_elected_one():
    base, experts = family(5)
    result = merge_state_dicts(base, experts, "ties", density=1.0)
    for name in ("encoder.layers.0.feed_forward1.linear1.weight", "decoder.decoder_layers.0.weight"):
        elected = sum(expert[name] - base[name] for expert in experts).sign()
        assert bool((((result[name] - base[name]) * elected) >= -1e-7).all())


def test_the_scope_of_the_model_is_one_threshold_for_all_tensors():
    base = {"small.weight": torch.zeros(4, 4), "large.weight": torch.zeros(4, 4)}
    expert = {"small.weight": torch.full((4, 4), 0.1), "large.weight": torch.full((4, 4), 1.0)}
    tensor = merge_state_dicts(base, [expert], "ties", density=0.5)
    model = merge_state_dicts(base, [expert], "ties", density=0.5, scope="model")
    assert int((tensor["small.weight"] != 0).sum()) == int((tensor["large.weight"] != 0).sum()) == 8
    assert not model["small.weight"].any()
    assert model["large.weight"].all()


def test_the_scope_of_the_model_equals_one_long_tensor():
    base, experts = family()
    names = [
        name
        for name, tensor in base.items()
        if tensor.is_floating_point() and "preprocessor" not in name and "running" not in name
    ]
    long = [torch.cat([model[name].reshape(-1) for name in names])[None] for model in (base, *experts)]
    whole = merge_state_dicts({"w": long[0]}, [{"w": tensor} for tensor in long[1:]], "ties", density=0.3)["w"][0]
    parts = merge_state_dicts(base, experts, "ties", density=0.3, scope="model")
    assert torch.equal(torch.cat([parts[name].reshape(-1) for name in names]), whole)


ROUTES = {
    "sample": {},
    "misleading sample": {"_brackets": lambda blocks, values, wanted: np.zeros((*wanted.shape, 2), np.float32)},
    "too much to hold": {"_MOST_HELD": -1},
}


@pytest.mark.parametrize("route", ROUTES)
@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, 1e-8, -1e-8, 0.5, -0.5, 1.0, 3.0, 1e30]), min_size=1, max_size=40),
    density=st.floats(0, 1),
    rows=st.integers(1, 4),
)
def test_selection_takes_exactly_so_many_and_the_lowest_index_among_equals(
    route,
    values,
    density,
    rows,
):
    delta = torch.tensor(values * rows).view(rows, len(values))
    blocks = TensorBlocks(torch.zeros_like(delta), [delta], torch.float32)
    blocks._step = 1  # the smallest blocks there are
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ROUTES[route].items():
            patch.setattr(_selection, name, value)
        selection = largest(blocks, lambda block: block.deltas.abs(), share_of(blocks, density, 1))
    mask = torch.cat([selection.mask(block, block.deltas.abs())[0].reshape(-1) for block in blocks])
    magnitudes = delta.reshape(-1).abs()
    wanted = sorted(range(delta.numel()), key=lambda i: (-float(magnitudes[i]), i))[
        : int(density * delta.numel() + 1e-9)
    ]
    assert mask.nonzero().squeeze(1).tolist() == sorted(wanted)


def test_a_large_tensor_is_searched_between_two_sampled_values(monkeypatch):
    monkeypatch.setattr(_selection, "_SAMPLE", 2000)
    monkeypatch.setattr(_selection, "_by_digits", lambda *_: pytest.fail("the sample did not help"))
    delta = torch.randn(3, 200_000).round(decimals=3)  # many equal values
    blocks = TensorBlocks(torch.zeros(200_000), list(delta), torch.float32)
    counts = [torch.tensor([1, 40_000, 199_999]), torch.tensor([0, 20, 200_000])]
    for count, selection in zip(
        counts, _selection.selections(blocks, lambda block: block.magnitudes, counts), strict=True
    ):
        mask = torch.cat([selection.mask(block, block.magnitudes) for block in blocks], 1)
        order = delta.abs().argsort(dim=1, descending=True, stable=True)
        for place, number in enumerate(count.tolist()):
            assert mask[place].nonzero().squeeze(1).tolist() == sorted(order[place, :number].tolist())


@pytest.mark.parametrize(("order", "descending"), [(_selection.ascending, False), (_selection.descending, True)])
def test_sorting_is_stable(order, descending):
    values = torch.randint(0, 20, (5, 300)) / 7
    assert torch.equal(order(values), values.argsort(dim=1, descending=descending, stable=True))
