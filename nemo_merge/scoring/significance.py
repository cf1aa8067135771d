"""How sure an error rate is: bootstrap intervals, and corrections for many comparisons."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import TranscriptError
from .error_rates import ErrorCounts

_DRAWN_AT_ONCE = 2_000_000  # counts in memory: 16 MB


class Interval(NamedTuple):
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def bootstrap_interval(
    sets: Sequence[Sequence[ErrorCounts]],
    baseline: Sequence[Sequence[ErrorCounts]] | None = None,
    *,
    blocks: Sequence[Sequence[Hashable]] | None = None,
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
        blocks: speaker or recording of every utterance, by set; whole blocks are drawn then. Utterances of one speaker
            are not independent, and intervals that ignore it are too narrow.
        replications: number of draws.
        seed: of the random numbers.

    Returns:
        Fractions; the value is that of the data themselves.

    Raises:
        ValueError: a set is empty, or the baseline or the blocks are of other utterances.
    """
    rng = np.random.default_rng(seed)
    value = 0.0
    drawn = np.zeros(replications)
    for index, counts in enumerate(sets):
        words = np.array([item.reference_length for item in counts], dtype=np.int64)
        errors = np.array([item.errors for item in counts], dtype=np.int64)
        if baseline is not None:
            other = baseline[index]
            if [item.reference_length for item in other] != [item.reference_length for item in counts]:
                raise TranscriptError(f"set {index}: the two systems were not scored on the same utterances")
            errors -= np.array([item.errors for item in other], dtype=np.int64)
        if not words.sum():
            raise TranscriptError(f"set {index} has no reference words")
        if blocks is not None:
            if len(blocks[index]) != len(counts):
                raise TranscriptError(f"set {index}: {len(blocks[index])} blocks for {len(counts)} utterances")
            members = _numbered(blocks[index])
            words, errors = (np.bincount(members, values).astype(np.int64) for values in (words, errors))
        value += errors.sum() / words.sum() / len(sets)
        drawn += _drawn_rates(rng, errors, words, replications) / len(sets)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p values for their number (Holm, 1979, Scandinavian Journal of Statistics 6).

    Calling those below 0.05 significant is wrong in any of the comparisons with a probability of 5 % at most, whatever
    the dependence between them: many merges against one baseline are one family.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    Returns:
        Adjusted values in the order given, 1 at most.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _drawn_rates(rng: np.random.Generator, errors: np.ndarray, words: np.ndarray, replications: int) -> np.ndarray:
    """Error rates of sets of the same size, drawn with replacement; some at a time, so that they fit into memory."""
    # Both counts in one integer, the words in its lower half, so that one look-up and one sum do for both.
    packed = (errors << 32) + words
    step = max(1, _DRAWN_AT_ONCE // len(packed))
    rates = []
    for start in range(0, replications, step):
        rows = min(step, replications - start)
        sums = packed.take(rng.integers(len(packed), size=(rows, len(packed)), dtype=np.uint32)).sum(axis=1)
        rates.append((sums >> 32) / np.maximum(sums & 0xFFFFFFFF, 1))
    return np.concatenate(rates)


def _numbered(labels: Sequence[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(label, len(numbers)) for label in labels]
