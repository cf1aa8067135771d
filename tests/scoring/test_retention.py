"""Measures of forgetting on numbers made by hand, and their intervals on drawn ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nemo_merge.scoring.error_rates import ErrorCounts, sum_counts
from nemo_merge.scoring.retention import (
    backward_gain,
    bootstrap_measure,
    forgetting,
    mean_rate,
    new_domain_drop,
    recovered_forgetting,
)


def errors(**rates: tuple[int, int]) -> dict[str, ErrorCounts]:
    return {name: ErrorCounts(wrong, 0, 0, words) for name, (wrong, words) in rates.items()}


BASE = errors(read=(10, 100), talk=(90, 300))  # 10 % and 30 %: macro 20 %, micro 25 %
LORA = errors(read=(40, 100), talk=(180, 300))  # 40 % and 60 %: macro 50 %, micro 55 %
BLORA = errors(read=(16, 100), talk=(90, 300))  # 16 % and 30 %: macro 23 %, micro 26.5 %


def test_macro_counts_sets_and_micro_counts_words():
    assert mean_rate(BASE) == pytest.approx(0.20)
    assert mean_rate(BASE, "micro") == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("average", "lost", "share", "gain", "recovered"),
    [("macro", 0.30, 1.5, 1 - 0.23 / 0.50, 0.9), ("micro", 0.30, 1.2, 1 - 0.265 / 0.55, 1 - 0.015 / 0.30)],
)
def test_hand_made_numbers(average, lost, share, gain, recovered):
    assert forgetting(LORA, BASE, average=average) == pytest.approx(lost)
    assert forgetting(LORA, BASE, average=average, relative=True) == pytest.approx(share)
    assert backward_gain(BLORA, LORA, average=average) == pytest.approx(gain)
    assert recovered_forgetting(BLORA, LORA, BASE, average=average) == pytest.approx(recovered)


def test_the_published_claim_reads_as_it_should():
    lora, bayesian = errors(old=(500, 1000)), errors(old=(230, 1000))
    assert backward_gain(bayesian, lora) == pytest.approx(0.54)
    assert new_domain_drop(ErrorCounts(26, 0, 0, 100), ErrorCounts(25, 0, 0, 100)) == pytest.approx(0.04)


def test_fixed_points():
    assert backward_gain(LORA, LORA) == 0
    assert forgetting(BASE, BASE) == 0
    assert forgetting(BASE, BASE, relative=True) == 0
    assert new_domain_drop(LORA["read"], LORA["read"]) == 0
    assert recovered_forgetting(LORA, LORA, BASE) == 0
    assert recovered_forgetting(BASE, LORA, BASE) == 1


def test_getting_worse_is_negative_gain_and_getting_better_negative_forgetting():
    assert backward_gain(LORA, BLORA) < 0
    assert forgetting(BASE, LORA) < 0


def test_a_quotient_without_a_denominator_is_nan():
    perfect = errors(read=(0, 100), talk=(0, 300))
    assert math.isnan(backward_gain(LORA, perfect))
    assert math.isnan(forgetting(LORA, perfect, relative=True))
    assert math.isnan(recovered_forgetting(BLORA, BASE, BASE))
    assert math.isnan(new_domain_drop(LORA["read"], perfect["read"]))


def test_other_sets_and_other_references_are_refused():
    with pytest.raises(ValueError, match=r"scored on other sets: \['read'\] and \['read', 'talk'\]"):
        backward_gain(errors(read=(1, 100)), LORA)
    with pytest.raises(ValueError, match="talk: the two systems were not scored on the same utterances"):
        forgetting(errors(read=(1, 100), talk=(1, 299)), BASE)
    with pytest.raises(ValueError, match="neither 'macro' nor 'micro'"):
        mean_rate(BASE, "mean")
    with pytest.raises(ValueError, match="no test set"):
        mean_rate({})


def utterances(rate: float, seed: int, count: int = 200) -> list[ErrorCounts]:
    rng = np.random.default_rng(seed)
    lengths = np.random.default_rng(count).integers(3, 12, count)
    return [ErrorCounts(int(rng.binomial(n, rate)), 0, 0, int(n), 1) for n in lengths]


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_the_interval_surrounds_the_measure_of_the_data(average):
    lora = {"read": utterances(0.5, 0), "talk": utterances(0.3, 1, 80)}
    other = {"read": utterances(0.2, 2), "talk": utterances(0.1, 3, 80)}
    interval = bootstrap_measure(lambda model, reference: 1 - model / reference, other, lora, average=average)
    summed = [{name: sum_counts(counts) for name, counts in system.items()} for system in (other, lora)]
    assert interval.value == pytest.approx(backward_gain(*summed, average=average))
    assert interval.low < interval.value < interval.high
    assert interval.high - interval.low < 0.2


def test_the_same_utterances_are_drawn_for_every_system():
    lora = {"read": utterances(0.5, 0)}
    assert bootstrap_measure(lambda model, reference: 1 - model / reference, lora, lora) == (0, 0, 0)
    with pytest.raises(ValueError, match="not scored on the same utterances"):
        bootstrap_measure(lambda a, b: a - b, lora, {"read": utterances(0.5, 0, 199)})


def test_rates_serve_as_well_as_counts():
    counts = {"a": ErrorCounts(10, 0, 0, 100), "b": ErrorCounts(30, 0, 0, 60)}
    worse = {"a": ErrorCounts(20, 0, 0, 100), "b": ErrorCounts(45, 0, 0, 60)}
    rates, worse_rates = {"a": 0.1, "b": 0.5}, {"a": 0.2, "b": 0.75}
    assert backward_gain(counts, worse) == backward_gain(rates, worse_rates) == backward_gain([0.1, 0.5], [0.2, 0.75])
    assert forgetting(worse, counts) == forgetting(worse_rates, rates) == forgetting(worse_rates, counts)
    assert new_domain_drop(0.2, 0.1) == new_domain_drop(worse["a"], counts["a"])
    with pytest.raises(ValueError, match="average='micro' needs counts"):
        backward_gain(rates, worse_rates, average="micro")
    with pytest.raises(ValueError, match="scored on other sets"):
        backward_gain([0.1], [0.2, 0.3])
