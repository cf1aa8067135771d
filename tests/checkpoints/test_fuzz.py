"""Damaged files of every format give a clear error or are read correctly; nothing crashes, hangs or fills the memory."""

from __future__ import annotations

import os

import pytest
import torch

from .fuzzing import damaged, fuzz, outcome, read_seeds, write_seeds

COUNT = 100_000


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    return folder


def test_the_seeds_are_valid(seeds):
    for seed in read_seeds(seeds):
        assert outcome(seeds / seed.kind / seed.name, 0, ema=False) == "read"


def test_a_number_gives_the_same_file_again(seeds):
    valid = read_seeds(seeds)
    cases = [damaged(valid, number) for number in range(200)]
    assert cases == [damaged(valid, number) for number in range(200)]
    assert sum(data != seed.files[file] for seed, file, data in cases) > 190


@pytest.mark.parametrize(
    ("first", "count"),
    [(COUNT, 2000), pytest.param(0, COUNT, marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_damaged_files(seeds, first, count):
    counts, failures = fuzz(seeds, first, count, workers=min(2, os.cpu_count() or 1))
    assert not failures, "repeat a case by: python -m tests.checkpoints.fuzzing NUMBER\n" + "\n".join(failures)[:20_000]
    assert counts["read"] + counts["refused"] == count
    for seed in read_seeds(seeds):  # the changes are neither harmless nor always found at once
        assert counts[f"{seed.kind}: read"] > 0.02 * count / len(read_seeds(seeds))
        assert counts[f"{seed.kind}: refused"] > 0.3 * count / len(read_seeds(seeds))
