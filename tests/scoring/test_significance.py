from __future__ import annotations

import numpy as np
import pytest

from nemo_merge.scoring import bootstrap_interval
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
