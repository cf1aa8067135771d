from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_merge.scoring import bootstrap_interval, holm
from nemo_merge.scoring.error_rates import ErrorCounts, word_errors

kaldialign = pytest.importorskip("kaldialign")


def random_counts(utterances: int, rate: float, seed: int) -> list[ErrorCounts]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 12, utterances)
    return [ErrorCounts(int(rng.binomial(n, rate)), 0, 0, int(n), 1) for n in lengths]


def test_the_value_is_that_of_the_data():
    a, b = random_counts(50, 0.2, 0), random_counts(80, 0.4, 1)
    rate = [sum(c.errors for c in x) / sum(c.reference_length for c in x) for x in (a, b)]
    interval = bootstrap_interval([a, b])
    assert interval.value == pytest.approx(sum(rate) / 2)
    assert interval.low < interval.value < interval.high
    assert bootstrap_interval([a, b]) == interval


def test_agrees_with_kaldialign():
    rng = np.random.default_rng(0)
    words = ["a", "b", "c", "d"]
    references = [[words[i] for i in rng.integers(0, 4, 8)] for _ in range(150)]
    hypotheses = [[w if rng.random() > 0.2 else "x" for w in r] for r in references]
    theirs = kaldialign.bootstrap_wer_ci(references, hypotheses, replications=10000)
    ours = bootstrap_interval([word_errors([" ".join(r) for r in references], [" ".join(h) for h in hypotheses])])
    assert ours.value == pytest.approx(theirs["wer"], abs=2e-3)
    assert (ours.high - ours.low) / 2 == pytest.approx(theirs["ci95"], rel=0.1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        interval = bootstrap_interval([random_counts(60, 0.3, seed)], replications=400, seed=seed)
        covered += interval.low <= 0.3 <= interval.high
    assert 0.89 <= covered / 200 <= 0.99


def test_a_paired_difference_is_sharper_than_two_intervals():
    a = random_counts(100, 0.3, 0)
    better = [
        ErrorCounts(max(0, c.errors - (index % 3 == 0)), 0, 0, c.reference_length, 1) for index, c in enumerate(a)
    ]
    difference = bootstrap_interval([better], [a])
    assert difference.value < 0
    assert difference.high < 0
    alone = bootstrap_interval([a])
    assert difference.high - difference.low < alone.high - alone.low
    assert bootstrap_interval([a], [a]) == (0.0, 0.0, 0.0)


def test_systems_must_share_their_utterances():
    with pytest.raises(ValueError, match="not scored on the same utterances"):
        bootstrap_interval([random_counts(5, 0.2, 0)], [random_counts(5, 0.2, 1)])
    with pytest.raises(ValueError, match="no reference words"):
        bootstrap_interval([[ErrorCounts(0, 0, 0, 0, 1)]])
    with pytest.raises(ValueError, match="3 blocks for 5 utterances"):
        bootstrap_interval([random_counts(5, 0.2, 0)], blocks=[["a", "b", "c"]])


def test_speakers_are_drawn_whole():
    """Ten speakers whose utterances are all right or all wrong: the interval is that of ten coins, not of a hundred."""
    counts, blocks = [], []
    for speaker in range(10):
        counts += [ErrorCounts(5 * (speaker % 2), 0, 0, 5, 1)] * 10
        blocks += [f"speaker {speaker}"] * 10
    by_speaker = bootstrap_interval([counts], blocks=[blocks])
    by_utterance = bootstrap_interval([counts])
    assert by_speaker.value == by_utterance.value == 0.5
    assert by_speaker.high - by_speaker.low == pytest.approx(2 * 1.96 * 0.5 / 10**0.5, abs=0.1)
    assert by_utterance.high - by_utterance.low == pytest.approx(2 * 1.96 * 0.5 / 100**0.5, abs=0.03)
    alone = [[index for index in range(100)]]
    assert bootstrap_interval([counts], blocks=alone) == by_utterance


def test_large_sets_are_drawn_in_parts(monkeypatch):
    counts = random_counts(50, 0.2, 0)
    whole = bootstrap_interval([counts], replications=300)
    monkeypatch.setattr("nemo_merge.scoring.significance._DRAWN_AT_ONCE", 1000)
    assert bootstrap_interval([counts], replications=300) == pytest.approx(whole)


def test_holm_by_hand():
    """Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1; no value below one before it."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_holm_keeps_the_order_and_lies_between_raw_and_bonferroni(values, random):
    adjusted = holm(values)
    for raw, corrected in zip(values, adjusted, strict=True):
        assert raw <= corrected <= min(1, len(values) * raw) + 1e-12
    order = random.sample(range(len(values)), len(values))
    assert holm([values[index] for index in order]) == [adjusted[index] for index in order]
