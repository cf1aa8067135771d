"""Compares the systems of an evaluation: significance, means, and what a merge kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ..errors import ConfigError, did_you_mean
from .alignment import error_slots
from .error_rates import ErrorCounts, sum_counts
from .evaluation import TOKENS, Evaluation, Group
from .matched_pairs import MapssweResult, compare_slots
from .merge_metrics import (
    Means,
    NormalisedPerformance,
    Retention,
    domain_means,
    language_retention,
    normalised_performance,
    set_means,
)
from .significance import Interval, bootstrap_interval, holm


@dataclass(frozen=True)
class Comparison:
    """One system against the baseline on one group of rows.

    Attributes:
        system, group: what is compared.
        difference: of the error rates, system minus baseline, with its paired bootstrap interval.
        test: MAPSSWE; its difference is of the same sign.
        p_holm: the p value corrected for all systems (over all rows) or for all systems and groups (by group).
    """

    system: str
    group: Group
    difference: Interval
    test: MapssweResult
    p_holm: float


def compare(evaluation: Evaluation, baseline: str) -> list[Comparison]:
    """Every other system against a baseline, over all rows and by group, on the first metric.

    Raises:
        ConfigError: there is no such system, or the first metric is none that MAPSSWE is defined for.
    """
    _check_system(evaluation, baseline, "baseline")
    metric = evaluation.options.metrics[0]
    if metric not in TOKENS:
        raise ConfigError(f"MAPSSWE compares error rates; put one of {', '.join(TOKENS)} first, not {metric}")
    tokens = TOKENS[metric]
    said = [tokens(text) for text in evaluation.texts.references]
    slots = {
        system: [error_slots(r, tokens(h), "sclite") for r, h in zip(said, heard, strict=True)]
        for system, heard in evaluation.texts.hypotheses.items()
    }
    results = []
    # A domain that is one whole set, for example, is tested once, under its first name.
    unique: dict[tuple[int, ...], Group] = {}
    for group in evaluation.groups:
        unique.setdefault(group.rows, group)
    everything, *parts = unique.values()
    for family in ([everything], parts):
        tests = {
            (system, group): compare_slots(
                [slots[system][index] for index in group.rows], [slots[baseline][index] for index in group.rows]
            )
            for group in family
            for system in evaluation.systems
            if system != baseline and evaluation.scores[metric, system, group].value is not None
        }
        corrected = holm([test.p_value for test in tests.values()])
        for ((system, group), test), p_holm in zip(tests.items(), corrected, strict=True):
            difference = _difference(evaluation, metric, system, baseline, group)
            results.append(Comparison(system, group, difference, test, p_holm))
    return results


@dataclass(frozen=True)
class SystemMeans:
    """Unweighted means of one system on the first metric: by set and by domain, where there are any."""

    by_set: Means | None
    by_domain: Means | None


def means(evaluation: Evaluation, system: str, out_of_domain: Collection[str] = ()) -> SystemMeans:
    """Means in which sets, and means in which domains count alike.

    Args:
        evaluation: of several sets or domains.
        system: which of its systems.
        out_of_domain: sets and domains on which no expert was trained.

    Raises:
        ConfigError: a name is neither a set nor a domain.
    """
    metric = evaluation.options.metrics[0]
    if metric not in evaluation.errors:
        return SystemMeans(None, None)
    sets, domains = ({group.name for group in evaluation.groups_of(kind)} for kind in ("set", "domain"))
    for name in out_of_domain:
        if name not in sets | domains:
            raise ConfigError(f"{name!r} is neither a test set nor a domain{did_you_mean(name, sets | domains)}")
    # A test set may have several domains, and a domain several test sets: what is averaged first are their meetings.
    cells: dict[tuple[str, str], list[ErrorCounts]] = {}
    for row, counts in zip(evaluation.rows, evaluation.errors[metric][system], strict=True):
        cells.setdefault((row.set, row.domain or "(none)"), []).append(counts)
    totals = {cell: sum_counts(found) for cell, found in cells.items()}
    rates = {"\t".join(cell): total.rate for cell, total in totals.items() if total.reference_length}
    outside = {cell for cell in cells if set(cell) & set(out_of_domain)}
    by_set = by_domain = None
    if sets:
        inside = {name for name, domain in cells if (name, domain) not in outside}
        by_name = evaluation.rates(metric, system, "set")
        by_set = set_means(by_name, (sets - inside) & by_name.keys())
    if domains:
        inside = {domain for name, domain in cells if (name, domain) not in outside}
        of_cell = {name: name.split("\t")[1] for name in rates}
        by_domain = domain_means(rates, of_cell, (domains - inside) & {*of_cell.values()})
    return SystemMeans(by_set, by_domain)


@dataclass(frozen=True)
class Kept:
    """What a merge has of its experts and of its base.

    Attributes:
        performance: recovered gain over the groups that have an expert; ``None`` without experts.
        retention: by language, or by domain or set where languages are not known; of error rates only.
    """

    performance: NormalisedPerformance | None
    retention: Mapping[str, Retention]


def kept(evaluation: Evaluation, system: str, base: str, experts: Mapping[str, str]) -> Kept:
    """Compares a merge with its base and its experts on the first metric.

    Args:
        evaluation: with all these systems.
        system: the merge.
        base: the system that the experts were fine-tuned from.
        experts: the system that is the expert of a domain, language or set.

    Raises:
        ConfigError: a system or group is not there.
    """
    metric = evaluation.options.metrics[0]
    for name in (system, base, *experts.values()):
        _check_system(evaluation, name, "system")
    kinds = ("language", "domain", "set")
    by_kind = {kind: evaluation.rates(metric, system, kind) for kind in kinds}
    retention = {}
    if metric in evaluation.errors:
        known = next((kind for kind in kinds if by_kind[kind]), "all")
        retention = language_retention(evaluation.rates(metric, base, known), evaluation.rates(metric, system, known))
    if not experts:
        return Kept(None, retention)
    home = next((kind for kind in kinds if set(experts) <= set(by_kind[kind])), None)
    if home is None:
        names = {name for rates in by_kind.values() for name in rates}
        lost = next((name for name in experts if name not in names), ", ".join(experts))
        raise ConfigError(f"no domain, language or set is called {lost!r}{did_you_mean(lost, names)}")
    at_home = {name: evaluation.rates(metric, expert, home)[name] for name, expert in experts.items()}
    return Kept(
        normalised_performance(
            evaluation.rates(metric, base, home),
            at_home,
            by_kind[home],
            higher_is_better=metric not in evaluation.errors,
        ),
        retention,
    )


def _difference(evaluation: Evaluation, metric: str, system: str, baseline: str, group: Group) -> Interval:
    mine, other = ([evaluation.errors[metric][name][index] for index in group.rows] for name in (system, baseline))
    blocks = None
    if evaluation.options.by_speaker:
        blocks = [[evaluation.rows[index].speaker for index in group.rows]]
    replications = evaluation.options.replications or 1
    return bootstrap_interval([mine], [other], blocks=blocks, replications=replications)


def _check_system(evaluation: Evaluation, name: str, role: str) -> None:
    if name not in evaluation.systems:
        raise ConfigError(f"there is no {role} {name!r}{did_you_mean(name, evaluation.systems)}")
