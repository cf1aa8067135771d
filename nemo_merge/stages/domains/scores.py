"""Stages 6 and 7: every system transcribes every test set; error rates, their means, and tests against the baseline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...scoring import Interval, bootstrap_interval, domain_means, holm
from ...scoring.alignment import error_slots
from ...scoring.error_rates import ErrorCounts, sum_counts, word_errors
from ...scoring.matched_pairs import MapssweResult, compare_slots
from ...training.decode import Hypothesis, read_hypotheses
from ..data import cuts_path
from ..engine import Context
from ..results import transcribe_all
from .experiment import BASE, EXPERTS, JOINT, area_of, expert_runs, groups, runs, systems, test_sets
from .search import candidates

Run = Mapping[str, Sequence[Hypothesis]]
"""Hypotheses of one model by test set."""
Errors = dict[str, list[list[ErrorCounts]]]
"""Errors of the utterances of a test set, one list per seed, by test set."""


def decode(context: Context) -> None:
    """Stage 6: base, joint fine-tuning and merges transcribe all test sets, experts that of their domain."""
    names = test_sets(context.config)
    models = {name: path for system in systems(context.config) for name, path in runs(context, system).items()}
    only = {}
    for domain in context.config["domains"]:
        models |= expert_runs(context, domain)
        only |= {name: [domain] for name in expert_runs(context, domain)}
    transcribe_all(context, models, {name: cuts_path(context, name, "test") for name in names}, only)


def score(context: Context) -> None:
    """Stage 7: error rates of all systems with intervals, and every merge against the baseline."""
    config = context.config
    wanted = groups(config)
    every = test_sets(config)
    heard = {
        system: [_heard(context, model, every) for model in runs(context, system)] for system in systems(config)
    }
    errors = {system: _errors(found) for system, found in heard.items()}
    at_home = {
        domain: [_utterance_errors(_heard(context, model, [domain])[domain]) for model in expert_runs(context, domain)]
        for domain in config["domains"]
    }
    families = {item.entry: item.method.family for item in candidates(config)}
    baseline = config["score"]["baseline"]
    portuguese = [*wanted["in domain"], *wanted.get("out of domain", [])]
    table: dict[str, Any] = {
        "groups": wanted,
        "areas": area_of(config),
        "baseline": baseline,
        "seeds": list(config["seeds"]),
        "systems": {},
    }
    for system, found in errors.items():
        row = {"family": families.get(system), **_rates(found, wanted, portuguese, area_of(config))}
        if system not in (baseline, BASE):
            row["against"] = {
                name: _difference(found, errors[baseline], sets)
                for name, sets in {**wanted, "full": portuguese}.items()
            }
        table["systems"][system] = row
        context.say(f"{system}: {100 * row['means']['in domain']['interval'].value:.1f} % in domain")
    table["systems"][EXPERTS] = {"family": None, **_rates(at_home, {"in domain": wanted["in domain"]}, [], {})}
    merges = [name for name in systems(config) if name not in (BASE, JOINT, baseline)]
    tests = {"in domain": wanted["in domain"], "full": portuguese}
    table["significance"] = {
        name: _significance({merge: heard[merge] for merge in merges}, heard[baseline], sets)
        for name, sets in tests.items()
    }
    best = best_merge(context)
    table["best"] = best
    if best != baseline:
        table["by set"] = _by_set(heard[best], heard[baseline], portuguese)
    (context.expdir / "scores.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def best_merge(context: Context) -> str:
    """The merge with the lowest error rate on the development sets, among those whose settings were searched.

    Where nothing was searched, the first entry of ``merge.methods``.
    """
    rows = json.loads((context.expdir / "search.json").read_text(encoding="utf-8"))
    names = list(context.config["merge"]["methods"])
    return min(rows, key=lambda row: row["dev"])["entry"] if rows else names[0]


def _heard(context: Context, model: str, sets: Sequence[str]) -> Run:
    return {name: read_hypotheses(context.expdir / "decode" / model / f"{name}.jsonl") for name in sets}


def _utterance_errors(heard: Sequence[Hypothesis]) -> list[ErrorCounts]:
    return word_errors([item.text or "" for item in heard], [item.pred_text for item in heard])


def _errors(found: Sequence[Run]) -> Errors:
    return {name: [_utterance_errors(run[name]) for run in found] for name in found[0]}


def _together(seeds: Sequence[Sequence[ErrorCounts]], times: int = 1) -> list[ErrorCounts]:
    """Errors of every utterance added over the seeds, so that drawing utterances draws them for all seeds."""
    return [sum_counts(list(utterance) * times) for utterance in zip(*seeds, strict=True)]


def _rates(
    errors: Errors, wanted: Mapping[str, Sequence[str]], full: Sequence[str], areas: Mapping[str, str]
) -> dict[str, Any]:
    """Error rates by set, and means of them: by group, over all sets of the studied language, and over its areas."""
    summed = {name: _together(seeds) for name, seeds in errors.items()}
    by_seed = [
        {name: sum_counts(seeds[index]).rate for name, seeds in errors.items()}
        for index in range(len(next(iter(errors.values()))))
    ]
    sets = {
        name: {**asdict(sum_counts(counts)), "interval": bootstrap_interval([counts])}
        for name, counts in summed.items()
    }
    means = {
        name: {
            "interval": bootstrap_interval([summed[item] for item in names]),
            "seeds": [sum(rates[item] for item in names) / len(names) for rates in by_seed],
        }
        for name, names in {**wanted, **({"full": full} if full else {})}.items()
    }
    found: dict[str, Any] = {"sets": sets, "means": means}
    if full:
        rates = {name: sum_counts(summed[name]).rate for name in full}
        found["by area"] = domain_means(rates, areas).full
    return found


def _difference(errors: Errors, baseline: Errors, sets: Sequence[str]) -> Interval:
    """Mean error rate less that of the baseline, with the same utterances drawn for both."""
    count = len(next(iter(errors.values())))
    other = len(next(iter(baseline.values())))
    mine = [_together(errors[name], other) for name in sets]
    return bootstrap_interval(mine, [_together(baseline[name], count) for name in sets])


def _significance(
    merges: Mapping[str, Sequence[Run]], baseline: Sequence[Run], sets: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """MAPSSWE of every merge against the baseline, seed by seed, over the words of some sets.

    ``p_holm`` is corrected for the number of merges; the largest over the seeds is taken.
    """
    theirs = [_slots(run, sets) for run in baseline]
    tests: dict[str, list[MapssweResult]] = {}
    for name, found in merges.items():
        pairs = zip(found, theirs * (len(found) if len(theirs) == 1 else 1), strict=True)
        tests[name] = [compare_slots(_slots(run, sets), other) for run, other in pairs]
    corrected = [holm([test.p_value for test in seed]) for seed in zip(*tests.values(), strict=True)]
    return {
        name: {"seeds": [asdict(test) for test in found], "p_holm": max(values[index] for values in corrected)}
        for index, (name, found) in enumerate(tests.items())
    }


def _by_set(merge: Sequence[Run], baseline: Sequence[Run], sets: Sequence[str]) -> dict[str, float]:
    """p values of the same test for one merge and every set by itself, corrected for the number of sets."""
    found = [
        holm([compare_slots(_slots(mine, [name]), _slots(other, [name])).p_value for name in sets])
        for mine, other in zip(merge, baseline * (len(merge) if len(baseline) == 1 else 1), strict=True)
    ]
    return {name: max(values) for name, values in zip(sets, zip(*found, strict=True), strict=True)}


def _slots(run: Run, sets: Sequence[str]) -> list[list[int]]:
    return [
        error_slots((item.text or "").split(), item.pred_text.split(), "sclite") for name in sets for item in run[name]
    ]


def hypothesis_files(context: Context) -> list[Path]:
    """What stage 6 leaves."""
    folder = context.expdir / "decode"
    names = test_sets(context.config)
    models = [model for system in systems(context.config) for model in runs(context, system)]
    homes = [(model, domain) for domain in context.config["domains"] for model in expert_runs(context, domain)]
    files = [folder / model / f"{name}.jsonl" for model in models for name in names]
    return [*files, *(folder / model / f"{domain}.jsonl" for model, domain in homes)]
