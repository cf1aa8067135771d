"""What a merge kept of its experts and of its base, from error rates by set."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import TranscriptError


@dataclass(frozen=True)
class NormalisedPerformance:
    """How much of the experts' gains a merge has.

    Attributes:
        value: unweighted mean over the sets for which it is defined; NaN if there are none.
        by_set: 1 where the merge is as good as the expert, 0 where it is as good as the base; may be negative or above
            1.
        undefined: sets whose expert is not better than the base, which have no gain to recover.
    """

    value: float
    by_set: Mapping[str, float]
    undefined: tuple[str, ...]


def normalised_performance(
    base: Mapping[str, float],
    experts: Mapping[str, float],
    merged: Mapping[str, float],
    *,
    higher_is_better: bool = False,
) -> NormalisedPerformance:
    """Recovered gain: the mean over languages or domains of (base - merged) / (base - expert).

    The name is that of LoRS-Merging (Zhao et al., 2025, arXiv 2502.17380); this definition of it is this project's.

    Args:
        base: error rate of the base on every set.
        experts: that of each set's own expert.
        merged: that of the merge.
        higher_is_better: the numbers are BLEU, chrF or accuracies instead of error rates.

    Example:
        >>> normalised_performance({"pt": 0.5, "de": 0.3}, {"pt": 0.25, "de": 0.3}, {"pt": 0.3125, "de": 0.35})
        NormalisedPerformance(value=0.75, by_set={'pt': 0.75}, undefined=('de',))

    Raises:
        ValueError: a set is missing in the base or in the merge.
    """
    _check_same(experts, base=base, merged=merged)
    sign = -1 if higher_is_better else 1
    by_set, undefined = {}, []
    for name, expert in experts.items():
        gain = sign * (base[name] - expert)
        if gain > 0:
            by_set[name] = sign * (base[name] - merged[name]) / gain
        else:
            undefined.append(name)
    value = math.fsum(by_set.values()) / len(by_set) if by_set else math.nan
    return NormalisedPerformance(value, by_set, tuple(undefined))


class Means(NamedTuple):
    """Unweighted means; ``None`` where there is nothing to average.

    Attributes:
        in_domain: over what some expert was trained on.
        out_of_domain: over the rest.
        full: over all.
    """

    in_domain: float | None
    out_of_domain: float | None
    full: float | None


def set_means(rates: Mapping[str, float], out_of_domain: Collection[str] = ()) -> Means:
    """Means in which every test set counts alike.

    Args:
        rates: error rate by test set.
        out_of_domain: the sets on which no expert was trained.

    Example:
        >>> set_means({"news": 0.125, "talks": 0.25, "kitchen": 0.75}, ["kitchen"])
        Means(in_domain=0.1875, out_of_domain=0.75, full=0.375)

    Raises:
        ValueError: a set that is named as out of domain has no rate.
    """
    _check_same(dict.fromkeys(out_of_domain), rates=rates)
    inside = [rate for name, rate in rates.items() if name not in out_of_domain]
    outside = [rate for name, rate in rates.items() if name in out_of_domain]
    return Means(_mean(inside), _mean(outside), _mean([*inside, *outside]))


def domain_means(rates: Mapping[str, float], domains: Mapping[str, str], out_of_domain: Collection[str] = ()) -> Means:
    """Means in which every domain counts alike, however many test sets it has.

    Args:
        rates: error rate by test set.
        domains: the domain of every test set.
        out_of_domain: the *domains* on which no expert was trained.

    Example:
        >>> domain_means({"a": 0.125, "b": 0.375, "c": 0.75}, {"a": "news", "b": "news", "c": "talks"}).full
        0.5

    Raises:
        ValueError: a set has no domain, or a domain that is named as out of domain has no set.
    """
    _check_same(rates, domains=domains)
    by_domain: dict[str, list[float]] = {}
    for name, rate in rates.items():
        by_domain.setdefault(domains[name], []).append(rate)
    return set_means({domain: math.fsum(values) / len(values) for domain, values in by_domain.items()}, out_of_domain)


class Retention(NamedTuple):
    """What a merge did to one language of the base.

    Attributes:
        base, merged: error rates.
        difference: merged minus base; positive if the merge forgot.
        relative: the same over the base; ``None`` if the base makes no error.
        accuracy_kept: (1 - merged) / (1 - base); ``None`` if the base's error rate is 1 or more.
    """

    base: float
    merged: float
    difference: float
    relative: float | None
    accuracy_kept: float | None


def language_retention(base: Mapping[str, float], merged: Mapping[str, float]) -> dict[str, Retention]:
    """How much of the base's quality a merge keeps, language by language.

    Both views are given because each hides something: an error rate that doubles from 4 to 8 % keeps 96 % of the
    accuracy, and one that goes from 80 to 90 % halves it.

    Raises:
        ValueError: a language of the base is missing in the merge.
    """
    _check_same(base, merged=merged)
    kept = {}
    for language, before in base.items():
        after = merged[language]
        kept[language] = Retention(
            before,
            after,
            after - before,
            (after - before) / before if before else None,
            (1 - after) / (1 - before) if before < 1 else None,
        )
    return kept


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _check_same(wanted: Mapping[str, object], **given: Mapping[str, object]) -> None:
    for label, values in given.items():
        if missing := [name for name in wanted if name not in values]:
            raise TranscriptError(f"{label} has no entry for {', '.join(missing)}")
