"""The random choices of DARE and DELLA."""

from __future__ import annotations

import pytest
import torch

from nemo_merge.methods import Block
from nemo_merge.methods._random import bernoulli


def block(numel: int, start: int = 0) -> Block:
    return Block(torch.zeros(numel), [torch.zeros(numel)], start, "w")


@pytest.mark.parametrize("probability", [0.0, 1e-3, 0.5 / 256, 0.2, 0.5, 1 - 0.3 / 256, 0.9999, 1.0])
def test_ones_come_as_often_as_their_probability_says(probability):
    count = 1_000_000
    sample = bernoulli(block(count), 0, 0, probability)
    error = (probability * (1 - probability) / count) ** 0.5
    assert abs(float(sample.mean()) - probability) <= 5 * error
    assert set(sample.unique().tolist()) <= {0.0, 1.0}


def test_neighbours_and_experts_are_independent():
    count = 1_000_000
    first, second = (bernoulli(block(count), 0, expert, 0.3) - 0.3 for expert in (0, 1))
    for other in (second, first.roll(1), first.roll(8), first.roll(32)):
        assert abs(float((first * other).mean())) < 5 * 0.21 / count**0.5


@pytest.mark.parametrize("per_entry", [False, True])
@pytest.mark.parametrize("sizes", [(7, 1, 40, 100), (33, 115), (32, 64, 52)])
def test_cutting_into_blocks_changes_nothing(sizes, per_entry):
    count = sum(sizes)
    probability = torch.linspace(0, 1, count) if per_entry else 0.4
    whole, start = bernoulli(block(count), 3, 1, probability), 0
    for size in sizes:
        part = slice(start, start + size)
        own = probability[part] if per_entry else probability
        assert torch.equal(bernoulli(block(size, start), 3, 1, own), whole[part])
        start += size


def test_one_probability_for_all_is_the_same_as_one_for_each():
    for probability in (0.25, 0.3, 0.999):
        each = torch.full((10_000,), probability, dtype=torch.float64)
        assert torch.equal(bernoulli(block(10_000), 0, 0, each), bernoulli(block(10_000), 0, 0, probability))
