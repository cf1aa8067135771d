"""What a model that learnt a new domain still knows of the old ones.

The measures are quotients and differences of error rates over *source* sets, those of the base model's domains, and
over a *target* set, the new domain. A mean over sets is *macro* where every set counts alike, and *micro* where every
reference word does.

Ugan, Pham and Waibel (ICASSP 2026, arXiv 2510.18723) speak of the backward gain of one adaptation over another without
a formula; the definitions here agree with what they claim: a gain of 0.54 means that the error rate on the old domains
is 54 % below the one after plain LoRA.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from .error_rates import ErrorCounts, sum_counts
from .significance import Interval

Average = Literal["macro", "micro"]
Rates = Mapping[str, ErrorCounts | float] | Sequence[ErrorCounts | float]
"""What a model scored on test sets: by name, or in the order of the sets; counts of errors, or error rates as they were
published, as fractions."""


def mean_rate(sets: Rates, average: Average = "macro") -> float:
    """Mean error rate over test sets, a fraction.

    Args:
        sets: errors of a model by test set.
        average: ``macro``: every set counts alike; ``micro``: every reference word does, which needs their number.

    Raises:
        ValueError: there is no set, one has no reference words, or the average is of another name.
    """
    if average not in ("macro", "micro"):
        raise ValueError(f"average={average!r} is neither 'macro' nor 'micro'")
    if not sets:
        raise ValueError("there is no test set to take the mean over")
    errors = list(_by_set(sets).values())
    if average == "macro":
        return math.fsum(map(_rate, errors)) / len(errors)
    counts = [item for item in errors if isinstance(item, ErrorCounts)]
    if len(counts) < len(errors):
        raise ValueError("average='micro' needs counts of errors and words, not rates; pass ErrorCounts")
    return sum_counts(counts).rate


def forgetting(
    model: Rates,
    base: Rates,
    *,
    average: Average = "macro",
    relative: bool = False,
) -> float:
    """By how much the error rate on the source sets rose from the base model; negative where it fell.

    Args:
        model: errors of the adapted model by source set.
        base: those of the model before adaptation, on the same sets.
        average: see :func:`mean_rate`.
        relative: as a share of the base model's error rate instead of in absolute terms; NaN if that makes no errors.

    Example:
        >>> base = {"read": ErrorCounts(10, 0, 0, 100), "talk": ErrorCounts(30, 0, 0, 100)}
        >>> adapted = {"read": ErrorCounts(20, 0, 0, 100), "talk": ErrorCounts(50, 0, 0, 100)}
        >>> round(forgetting(adapted, base), 3), round(forgetting(adapted, base, relative=True), 3)
        (0.15, 0.75)

    Raises:
        ValueError: the models were scored on other sets.
    """
    _check_same(_by_set(model), _by_set(base))
    after, before = mean_rate(model, average), mean_rate(base, average)
    return relative_change(after, before) if relative else after - before


def backward_gain(model: Rates, reference: Rates, *, average: Average = "macro") -> float:
    """Share of the reference's error rate on the source sets that a model does not make: ``1 - WER / WER_reference``.

    Args:
        model: errors of an adapted model by source set.
        reference: those of another adaptation, usually plain LoRA.
        average: see :func:`mean_rate`.

    Example:
        >>> round(backward_gain([0.098, 0.136], [0.208, 0.505]), 2)  # rates of two sets, as they were published
        0.67

    Returns:
        A fraction, 0 for the reference itself; negative where the model is worse; NaN if the reference makes no errors.

    Raises:
        ValueError: the models were scored on other sets.
    """
    _check_same(_by_set(model), _by_set(reference))
    return 0.0 - relative_change(mean_rate(model, average), mean_rate(reference, average))


def recovered_forgetting(
    model: Rates,
    reference: Rates,
    base: Rates,
    *,
    average: Average = "macro",
) -> float:
    """Share of the reference's forgetting that a model avoids: ``1 - F / F_reference``; 1 if it forgets nothing.

    Returns:
        A fraction; NaN if the reference forgot nothing, so that there is nothing to recover.

    Raises:
        ValueError: the models were scored on other sets.
    """
    lost = forgetting(reference, base, average=average)
    return 0.0 - relative_change(forgetting(model, base, average=average), lost) if lost > 0 else math.nan


def new_domain_drop(model: ErrorCounts | float, reference: ErrorCounts | float) -> float:
    """What a model pays on the target set: ``WER / WER_reference - 1``; negative where it is better than the reference.

    Args:
        model: errors of an adapted model on the new domain.
        reference: those of another adaptation, usually plain LoRA.

    Raises:
        ValueError: the models were not scored on the same references.
    """
    _check_same({"the new domain": model}, {"the new domain": reference})
    return relative_change(_rate(model), _rate(reference))


def relative_change(value: Any, reference: Any) -> Any:
    """``value / reference - 1`` of numbers or arrays, NaN where the reference is 0."""
    reference = np.asarray(reference, dtype=float)
    change = np.asarray(value, dtype=float) / np.where(reference == 0, np.nan, reference) - 1
    return change if change.ndim else float(change)


def bootstrap_measure(
    measure: Callable[..., Any],
    *systems: Mapping[str, Sequence[ErrorCounts]],
    average: Average = "macro",
    replications: int = 10_000,
    seed: int = 0,
) -> Interval:
    """A measure of several systems' mean error rates with its 95 % bootstrap interval.

    Utterances are drawn with replacement within each set, the same ones for every system, so that what is easy or hard
    for all of them cancels out. To draw over runs with several training seeds as well, give every utterance the sum of
    its counts over the runs.

    Args:
        measure: from one array of mean error rates per system to the measure, elementwise; for example
            ``lambda model, lora: 1 - model / lora``.
        systems: error counts of every utterance, by set.
        average: see :func:`mean_rate`.
        replications: number of draws.
        seed: of the random numbers.

    Raises:
        ValueError: the systems were not scored on the same utterances, or a set has no reference words.
    """
    first = systems[0]
    for system in systems:
        _check_same(first, system)
    lengths = {name: _column([item.reference_length for item in counts]) for name, counts in first.items()}
    for name, column in lengths.items():
        if not column.sum():
            raise ValueError(f"{name}: the references have no words")
    errors = np.zeros((len(systems), replications + 1))
    words = np.zeros(replications + 1)
    draws = _draws(tuple(len(column) for column in lengths.values()), replications, seed)
    for (name, column), times in zip(lengths.items(), draws, strict=True):
        drawn = np.stack([times @ _column([item.errors for item in system[name]]) for system in systems])
        size = np.maximum(times @ column, 1)
        errors += drawn / size / len(first) if average == "macro" else drawn
        words += size
    rates = errors if average == "macro" else errors / words
    values = np.asarray(measure(*rates), dtype=float)
    low, high = np.nanquantile(values[1:], [0.025, 0.975]) if not np.isnan(values[1:]).all() else (math.nan, math.nan)
    return Interval(float(values[0]), float(low), float(high))


@functools.lru_cache(maxsize=4)  # a report asks for many measures of the same test sets
def _draws(counts: tuple[int, ...], replications: int, seed: int) -> tuple[np.ndarray, ...]:
    """How often every utterance of each set is drawn, [replications + 1, utterances]; once each in the first row."""
    rng = np.random.default_rng(seed)
    drawn = (rng.multinomial(count, np.full(count, 1 / count), size=replications) for count in counts)
    return tuple(np.vstack([np.ones(times.shape[1]), times]) for times in drawn)


def _by_set(sets: Rates) -> Mapping[str, ErrorCounts | float]:
    return sets if isinstance(sets, Mapping) else {f"set {number}": item for number, item in enumerate(sets, 1)}


def _rate(errors: ErrorCounts | float) -> float:
    return errors.rate if isinstance(errors, ErrorCounts) else float(errors)


def _column(values: Sequence[int]) -> np.ndarray:
    return np.array(values, dtype=float)


def _check_same(model: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    if set(model) != set(other):
        raise ValueError(f"scored on other sets: {sorted(model)} and {sorted(other)}")
    for name, counts in model.items():
        lengths = [
            [item.reference_length for item in (side if isinstance(side, Sequence) else [side])]
            for side in (counts, other[name])
            if not isinstance(side, float | int)  # a rate does not say of how many words
        ]
        if lengths[1:] and lengths[0] != lengths[1]:
            raise ValueError(f"{name}: the two systems were not scored on the same utterances")
