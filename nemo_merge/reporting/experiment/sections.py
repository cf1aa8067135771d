"""Scores of groups of test sets: means with intervals, and every system against the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import ConfigError, did_you_mean
from ...scoring.comparison import Comparison, compare
from ...scoring.error_rates import ErrorCounts, sum_counts
from ...scoring.evaluation import Evaluation, Options, evaluate
from ...scoring.significance import Interval, bootstrap_interval
from ...scoring.transcripts import Row
from .folder import Experiment, Roles

IN_DOMAIN = "Sets with an expert"
REST = "Other sets"
ALL = "All sets"
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Section:
    """Some test sets, evaluated together.

    Attributes:
        name: what they have in common.
        sets: their names.
        evaluation: of their rows.
        rows: places of each set's rows in the evaluation.
        means: unweighted mean of the error rate over the sets, by system.
        differences: of that mean to the baseline's, by system.
        tests: MAPSSWE by system and rows.
    """

    name: str
    sets: Sequence[str]
    evaluation: Evaluation
    rows: Mapping[str, tuple[int, ...]]
    means: Mapping[str, Interval]
    differences: Mapping[str, Interval]
    tests: Mapping[tuple[str, tuple[int, ...]], Comparison]

    def total(self, system: str) -> ErrorCounts:
        """All errors of a system."""
        return sum_counts(self._errors(system))

    def counts(self, system: str, name: str) -> ErrorCounts:
        """Errors of a system on one set."""
        errors = self._errors(system)
        return sum_counts([errors[index] for index in self.rows[name]])

    def interval(self, system: str, name: str) -> Interval | None:
        """Error rate of a system on one set, if intervals were asked for."""
        metric, rows = self.evaluation.options.metrics[0], self.rows[name]
        group = next(group for group in self.evaluation.groups if group.rows == rows)
        return self.evaluation.scores[metric, system, group].interval

    def test(self, system: str, name: str | None = None) -> Comparison | None:
        """Comparison with the baseline on one set, or on all of them."""
        rows = self.evaluation.groups[0].rows if name is None else self.rows[name]
        return self.tests.get((system, rows))

    def _errors(self, system: str) -> Sequence[ErrorCounts]:
        return self.evaluation.errors[self.evaluation.options.metrics[0]][system]


def group_sets(experiment: Experiment, roles: Roles, given: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Names of the sets by what they have in common: those with an expert first, then groups as given, then the rest.

    Raises:
        ConfigError: a group has a set that is not there or in another one, or a name that the page uses.
    """
    sets = experiment.sets
    at_home = [name for name in sets if name in roles.experts]
    groups = {IN_DOMAIN: at_home} if at_home else {}
    for title, names in given.items():
        if title in (IN_DOMAIN, REST, ALL):
            raise ConfigError(f"group {title!r}: the page has a group of that name; choose another")
        taken = {name: group for group, members in groups.items() for name in members}
        for name in names:
            if name not in sets:
                raise ConfigError(f"group {title!r}: there is no test set {name!r}{did_you_mean(name, sets)}")
            if name in taken:
                raise ConfigError(f"group {title!r}: the test set {name!r} is in the group {taken[name]!r} already")
        groups[title] = list(dict.fromkeys(names))
    if left := [name for name in sets if not any(name in members for members in groups.values())]:
        groups[REST if groups else ALL] = left
    return groups


def make_section(name: str, sets: Sequence[str], rows: Sequence[Row], options: Options, baseline: str) -> Section:
    """Evaluates some sets and compares their systems; raises what :func:`evaluate` and :func:`compare` raise."""
    chosen = [row for row in rows if row.set in sets]
    evaluation = evaluate(chosen, options)
    places = {item: tuple(index for index, row in enumerate(chosen) if row.set == item) for item in sets}
    errors = evaluation.errors[options.metrics[0]]
    by_set = {system: [[counts[index] for index in places[item]] for item in sets] for system, counts in errors.items()}
    draws = max(options.replications, 1)
    return Section(
        name,
        sets,
        evaluation,
        places,
        {system: bootstrap_interval(found, replications=draws) for system, found in by_set.items()},
        {
            system: bootstrap_interval(found, by_set[baseline], replications=draws)
            for system, found in by_set.items()
            if system != baseline
        },
        {(test.system, test.group.rows): test for test in compare(evaluation, baseline)},
    )
