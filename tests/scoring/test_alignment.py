from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_merge.errors import ConfigError
from nemo_merge.scoring.alignment import align, count_edits, error_slots

kaldialign = pytest.importorskip("kaldialign")
COSTS = ("levenshtein", "sclite")
TOKENS = st.lists(st.sampled_from("abc"), max_size=8)


@pytest.mark.parametrize("costs", COSTS)
@given(reference=TOKENS, hypothesis=TOKENS)
def test_an_alignment_is_a_path_through_both(costs, reference, hypothesis):
    pairs = align(reference, hypothesis, costs)
    assert [said for said, _ in pairs if said is not None] == list(range(len(reference)))
    assert [heard for _, heard in pairs if heard is not None] == list(range(len(hypothesis)))
    assert (None, None) not in pairs
    substitutions, deletions, insertions = count_edits(reference, hypothesis, costs)
    slots = error_slots(reference, hypothesis, costs)
    assert sum(slots[::2]) == insertions
    assert sum(slots[1::2]) == substitutions + deletions
    assert len(reference) - deletions == len(hypothesis) - insertions


@given(reference=TOKENS, hypothesis=TOKENS)
def test_the_costs_are_the_least_possible(reference, hypothesis):
    assert sum(count_edits(reference, hypothesis)) == kaldialign.edit_distance(reference, hypothesis)["total"]
    s, d, i = count_edits(reference, hypothesis, "sclite")
    theirs = kaldialign.edit_distance(reference, hypothesis, sclite_mode=True)
    assert 4 * s + 3 * (d + i) == 4 * theirs["sub"] + 3 * (theirs["del"] + theirs["ins"])


@pytest.mark.parametrize("costs", COSTS)
@given(tokens=TOKENS)
def test_identity(costs, tokens):
    assert align(tokens, tokens, costs) == [(index, index) for index in range(len(tokens))]
    assert not any(error_slots(tokens, tokens, costs))


def test_where_the_two_differ():
    """Three substitutions cost as much as two deletions and two insertions in sclite; fewer cost more."""
    reference, hypothesis = list("abcd"), list("bcde")
    assert count_edits(reference, hypothesis) == (0, 1, 1)
    assert count_edits(["a", "b"], ["b", "c"]) == (2, 0, 0)
    assert count_edits(["a", "b"], ["b", "c"], "sclite") == (0, 1, 1)  # 3 + 3 < 4 + 4


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance", None)
    with pytest.raises(ConfigError, match=r"scoring needs rapidfuzz.*pip install 'nemo-merge\[score\]'"):
        count_edits("a", "b")


def test_long_recordings_fit_into_memory():
    words = [str(index % 997) for index in range(20_000)]
    assert sum(count_edits(words, words[1:])) == 1
    assert sum(count_edits(words[:3000], words[1:3000], "sclite")) == 1
