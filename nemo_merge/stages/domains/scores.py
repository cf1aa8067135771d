"""Stages 6 and 7: every system transcribes every test set; error rates, their means, and tests against the baseline."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...scoring import Interval, bootstrap_interval, domain_means, holm, normalised_performance
from ...scoring.alignment import error_slots
from ...scoring.error_rates import ErrorCounts, sum_counts, word_errors
from ...scoring.matched_pairs import MapssweResult, compare_slots
from ...tensors import Role
from ..data import cuts_path
from ..engine import Context
from ..results import transcribe_all
from .experiment import BASE, EXPERTS, area_of, expert_runs, groups, retained, runs, systems, test_sets
from .search import Candidate, candidates, heard

Run = Mapping[str, Sequence[tuple[str, str]]]
"""What was said and what one model recognised, by test set."""
Slots = Mapping[str, Sequence[Sequence[int]]]
"""Errors of a model's utterances by place, by test set."""
Errors = dict[str, list[list[ErrorCounts]]]
"""Errors of the utterances of a test set, one list per seed, by test set."""


def decode(context: Context) -> None:
    """Stage 6: base, joint fine-tuning and merges transcribe all test sets, experts that of their domain."""
    names = test_sets(context.config)
    models = {name: path for system in systems(context.config) for name, path in runs(context, system).items()}
    only: dict[str, list[str]] = {}
    for domain in context.config["domains"]:
        models |= expert_runs(context, domain)
        only |= {name: [domain] for name in expert_runs(context, domain)}
    transcribe_all(context, models, {name: cuts_path(context, name, "test") for name in names}, only)


def score(context: Context) -> None:
    """Stage 7: error rates of all systems with intervals, and every merge against the baseline."""
    config = context.config
    wanted = groups(config)
    every = test_sets(config)
    texts = {system: [_heard(context, model, every) for model in runs(context, system)] for system in systems(config)}
    errors = {system: _errors(found) for system, found in texts.items()}
    at_home = {
        domain: [_utterance_errors(_heard(context, model, [domain])[domain]) for model in expert_runs(context, domain)]
        for domain in config["domains"]
    }
    families = {item.entry: family(item) for item in candidates(config)}
    baseline = config["score"]["baseline"]
    studied = [*wanted["in domain"], *wanted.get("out of domain", [])]
    means = {**wanted, "full": studied}
    if kept := [name for names in retained(config).values() for name in names]:
        means["retention"] = kept
    table: dict[str, Any] = {
        "groups": wanted,
        "areas": area_of(config),
        "baseline": baseline,
        "seeds": list(config["seeds"]),
        "systems": {},
    }
    for system, found in errors.items():
        row = {"family": families.get(system), **_rates(found, means)}
        by_set = {name: row["sets"][name]["interval"].value for name in studied}
        row["by area"] = domain_means(by_set, area_of(config)).full
        if system not in (baseline, BASE):
            row["against"] = {name: _difference(found, errors[baseline], sets) for name, sets in means.items()}
        table["systems"][system] = row
        context.say(f"{system}: {100 * row['means']['in domain']['interval'].value:.1f} % in domain")
    table["systems"][EXPERTS] = {"family": None, **_rates(at_home, {"in domain": wanted["in domain"]})}
    rates = {
        system: {name: row["sets"][name]["interval"].value for name in wanted["in domain"]}
        for system, row in table["systems"].items()
    }
    for system in errors:
        gained = normalised_performance(rates[BASE], rates[EXPERTS], rates[system])
        table["systems"][system]["recovered"] = gained.value
    slots = {name: [_slots(run, studied) for run in found] for name, found in texts.items()}
    merges = {name: slots[name] for name in families if name != baseline}
    table["significance"] = {
        name: _significance(merges, slots[baseline], means[name]) for name in ("in domain", "full")
    }
    best = best_merge(context)
    table["best"] = best
    if best != baseline:
        table["by set"] = _by_set(slots[best], slots[baseline], studied)
    (context.expdir / "scores.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def family(item: Candidate) -> str:
    """The family of a candidate's method; one whose result has its singular values changed works in the subspace."""
    spectral = any(step.needs_matrix(Role.MATRIX) for step in item.then)
    return "task subspace" if spectral else item.method.family


def best_merge(context: Context) -> str:
    """The merge with the lowest error rate on the development sets."""
    rows = json.loads((context.expdir / "search.json").read_text(encoding="utf-8"))
    return str(min(rows, key=lambda row: row["dev"])["entry"])


def _heard(context: Context, model: str, sets: Sequence[str]) -> Run:
    return {name: heard(context, model, name) for name in sets}


def _utterance_errors(pairs: Sequence[tuple[str, str]]) -> list[ErrorCounts]:
    return word_errors([said for said, _ in pairs], [recognised for _, recognised in pairs])


def _errors(found: Sequence[Run]) -> Errors:
    return {name: [_utterance_errors(run[name]) for run in found] for name in found[0]}


def _together(seeds: Sequence[Sequence[ErrorCounts]], times: int = 1) -> list[ErrorCounts]:
    """Errors of every utterance added over the seeds, so that drawing utterances draws them for all seeds."""
    return [sum_counts(list(utterance) * times) for utterance in zip(*seeds, strict=True)]


def _rates(errors: Errors, means: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Error rates by set, and unweighted means of them over several sets, with intervals and for every seed."""
    summed = {name: _together(seeds) for name, seeds in errors.items()}
    count = len(next(iter(errors.values())))
    by_seed = [{name: sum_counts(seeds[index]).rate for name, seeds in errors.items()} for index in range(count)]
    return {
        "sets": {
            name: {**asdict(sum_counts(counts)), "interval": bootstrap_interval([counts])}
            for name, counts in summed.items()
        },
        "means": {
            name: {
                "interval": bootstrap_interval([summed[item] for item in names]),
                "seeds": [sum(rates[item] for item in names) / len(names) for rates in by_seed],
            }
            for name, names in means.items()
        },
    }


def _difference(errors: Errors, baseline: Errors, sets: Sequence[str]) -> Interval:
    """Mean error rate less that of the baseline, with the same utterances drawn for both."""
    count = len(next(iter(errors.values())))
    other = len(next(iter(baseline.values())))
    mine = [_together(errors[name], other) for name in sets]
    return bootstrap_interval(mine, [_together(baseline[name], count) for name in sets])


def _significance(
    merges: Mapping[str, Sequence[Slots]], baseline: Sequence[Slots], sets: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """MAPSSWE of every merge against the baseline, seed by seed, over the words of some sets.

    ``p_holm`` is corrected for the number of merges; the largest over the seeds is taken.
    """
    tests = {
        name: [_compared(mine, other, sets) for mine, other in _paired(found, baseline)]
        for name, found in merges.items()
    }
    corrected = [holm([test.p_value for test in seed]) for seed in zip(*tests.values(), strict=True)]
    return {
        name: {"seeds": [asdict(test) for test in found], "p_holm": max(values[index] for values in corrected)}
        for index, (name, found) in enumerate(tests.items())
    }


def _by_set(merge: Sequence[Slots], baseline: Sequence[Slots], sets: Sequence[str]) -> dict[str, float]:
    """The same test for one merge and every set by itself: p values, corrected for the number of sets."""
    found = [
        holm([_compared(mine, other, [name]).p_value for name in sets]) for mine, other in _paired(merge, baseline)
    ]
    return {name: max(values) for name, values in zip(sets, zip(*found, strict=True), strict=True)}


def _compared(mine: Slots, other: Slots, sets: Sequence[str]) -> MapssweResult:
    a, b = ([item for name in sets for item in slots[name]] for slots in (mine, other))
    return compare_slots(a, b)


def _paired(found: Sequence[Slots], baseline: Sequence[Slots]) -> Iterator[tuple[Slots, Slots]]:
    """Runs of the same seed; a baseline of one run is compared with all."""
    return zip(found, itertools.repeat(baseline[0], len(found)) if len(baseline) == 1 else baseline, strict=True)


def _slots(run: Run, sets: Sequence[str]) -> Slots:
    return {
        name: [error_slots(said.split(), recognised.split(), "sclite") for said, recognised in run[name]]
        for name in sets
    }


def hypothesis_files(context: Context) -> list[Path]:
    """What stage 6 leaves."""
    folder = context.expdir / "decode"
    names = test_sets(context.config)
    models = [model for system in systems(context.config) for model in runs(context, system)]
    homes = [(model, domain) for domain in context.config["domains"] for model in expert_runs(context, domain)]
    files = [folder / model / f"{name}.jsonl" for model in models for name in names]
    return [*files, *(folder / model / f"{domain}.jsonl" for model, domain in homes)]
