"""Which of the tried merges is taken, by error rates on development sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...scoring.error_rates import ErrorCounts, utterance_errors
from ...scoring.tokens import characters, words
from ...training.decode import Hypothesis

METRICS = {"cer": characters, "wer": words}
"""What an error rate counts."""


@dataclass(frozen=True)
class Choice:
    """A merge that was taken, and why."""

    name: str
    reason: str


def errors(found: Sequence[Hypothesis], metric: str) -> list[ErrorCounts]:
    """Errors of every utterance; ``metric`` is one of :data:`METRICS`."""
    return utterance_errors([item.text or "" for item in found], [item.pred_text for item in found], METRICS[metric])


def mean(rates: Mapping[str, float]) -> float:
    """Unweighted mean over languages."""
    return sum(rates.values()) / len(rates)


def choose(
    rates: Mapping[str, Mapping[str, float]],
    new: str | None = None,
    before: Mapping[str, float] | None = None,
    tolerance: float = 0.0,
) -> Choice:
    """The best of several merges.

    Args:
        rates: development error rates by language, by the merge's name.
        new: language that the merge adds to a model in service.
        before: that model's error rates by language.
        tolerance: mean error rate over its languages that is allowed above its own, as a share.

    Returns:
        Without a new language, the merge with the least mean error rate. With one, the merge that knows it best among
        those within the tolerance; without any, the one that adds least to the error rates of the others.
    """
    if new is None or before is None:
        return Choice(min(rates, key=lambda name: mean(rates[name])), "has the least mean error rate")
    old = {name: mean({item: rates[name][item] for item in before}) for name in rates}
    within = [name for name in rates if old[name] <= (1 + tolerance) * mean(before)]
    if within:
        best = min(within, key=lambda name: rates[name][new])
        return Choice(best, f"knows {new} best of {len(within)} within the tolerance")
    return Choice(min(old, key=lambda name: old[name]), "forgets least: none is within the tolerance")
