"""How sure an error rate is: bootstrap over utterances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .error_rates import ErrorCounts


class Interval(NamedTuple):
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def bootstrap_interval(
    sets: Sequence[Sequence[ErrorCounts]],
    baseline: Sequence[Sequence[ErrorCounts]] | None = None,
    *,
    replications: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean error rate over test sets with a 95 % bootstrap interval (Bisani and Ney, 2004, ICASSP).

    Utterances are drawn with replacement within each set; the rate of a set is its summed errors over its summed
    reference words, and sets count alike.

    Args:
        sets: error counts of every utterance, by set.
        baseline: those of another system on the same utterances; the result is then the difference to it, with the
            same utterances drawn for both.
        replications: number of draws.
        seed: of the random numbers.

    Returns:
        Fractions; the value is that of the data themselves.

    Raises:
        ValueError: a set is empty, or the baseline has other utterances.
    """
    rng = np.random.default_rng(seed)
    value = 0.0
    drawn = np.zeros(replications)
    for index, counts in enumerate(sets):
        words = np.array([item.reference_length for item in counts], dtype=float)
        errors = np.array([item.errors for item in counts], dtype=float)
        if baseline is not None:
            other = baseline[index]
            if [item.reference_length for item in other] != [item.reference_length for item in counts]:
                raise ValueError(f"set {index}: the two systems were not scored on the same utterances")
            errors = errors - np.array([item.errors for item in other], dtype=float)
        if not words.sum():
            raise ValueError(f"set {index} has no reference words")
        times = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=replications)
        value += errors.sum() / words.sum() / len(sets)
        drawn += (times @ errors) / np.maximum(times @ words, 1) / len(sets)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))
