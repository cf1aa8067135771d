"""Stages 6 and 7: every model hears its test sets; error rates, what fusion adds, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...scoring.error_rates import ErrorCounts, sum_counts, word_errors
from ...scoring.retention import bootstrap_measure, mean_rate
from ...training.cost import CostJob
from ...training.decode import Hypothesis, read_hypotheses
from ..engine import Context, identity
from ..results import heard_in, transcribe_each
from ..workers import run_jobs
from .encoders import cache_folder
from .systems import CONTROL, System, Task, all_runs, runs, systems, tasks

Errors = Mapping[str, Sequence[ErrorCounts]]
"""Errors of every utterance, added over the seeds, by test set."""


def decode(context: Context) -> None:
    """Stage 6: transcripts and labels from the hidden layers that are kept; then what a model of each system costs."""
    wanted = {
        name: (path, task.cuts(context, "test"))
        for task in tasks(context.config)
        for name, path in all_runs(context, task).items()
    }
    transcribe_each(context, wanted, cache=cache_folder(context))
    _measure(context)


def _measure(context: Context) -> None:
    """Costs of the models of the first seed; encoders are run for this, and nothing runs beside it."""
    jobs, marks = {}, {}
    for task in tasks(context.config):
        models = {system.name: next(iter(runs(context, task, system).values())) for system in systems(context.config)}
        cuts = next(iter(task.cuts(context, "test").values()))
        job, name = CostJob(models, cuts, cost_file(context, task)), f"cost-{task.name}"
        marks[name] = {"job": job, "files": [identity(path) for path in (*models.values(), cuts)]}
        if context.is_fresh(name, [Path(job.output)], **marks[name]):
            context.say(f"{name}: measured before")
        else:
            jobs[name] = job
    for name in run_jobs(jobs, context.expdir / "jobs", 1, context.say, together=True):
        context.mark_fresh(name, **marks[name])


def cost_file(context: Context, task: Task) -> Path:
    """What the systems cost on a task."""
    return context.expdir / "costs" / f"{task.name}.json"


@dataclass(frozen=True)
class Heard:
    """What the models of a system made of the test sets.

    Attributes:
        errors: see :data:`Errors`.
        seeds: error rate of every seed, the mean over the test sets.
    """

    errors: Errors
    seeds: list[float]


def score(context: Context) -> None:
    """Stage 7: error rates with intervals over utterances, and differences that belong to encoders or interfaces."""
    config, table = context.config, {}
    for task in tasks(config):
        found = {system: _heard(context, task, system) for system in systems(config)}
        table[task.name] = {
            "title": task.title,
            "error": task.error,
            "systems": [_row(system, heard, found) for system, heard in found.items()],
            "spread": _spread({system: heard.errors for system, heard in found.items()}),
            "costs": json.loads(cost_file(context, task).read_text(encoding="utf-8")),
        }
        best = min(table[task.name]["systems"], key=lambda row: row["rate"][0])
        context.say(f"{task.title}: {task.error} {100 * best['rate'][0]:.1f} % of {best['name']}, the lowest")
    (context.expdir / "scores.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def _heard(context: Context, task: Task, system: System) -> Heard:
    by_run = [
        {name: _errors(task, _hypotheses(context, task, run, name)) for name in task.cuts(context, "test")}
        for run in runs(context, task, system)
    ]
    together = {
        name: [sum_counts(list(utterance)) for utterance in zip(*(run[name] for run in by_run), strict=True)]
        for name in by_run[0]
    }
    rates = [mean_rate({name: sum_counts(counts) for name, counts in run.items()}) for run in by_run]
    return Heard(together, rates)


def _hypotheses(context: Context, task: Task, run: str, name: str) -> list[Hypothesis]:
    file = context.expdir / "decode" / run / f"{name}.jsonl"
    return read_hypotheses(file) if task.label is not None else heard_in(context, name, file)


def _errors(task: Task, found: Sequence[Hypothesis]) -> list[ErrorCounts]:
    if task.label is not None:  # a label is right or wrong, of however many words it is
        wrong = [int(item.pred_text != item.text) for item in found]
        return [ErrorCounts(each, 0, 0, 1, 1, each) for each in wrong]
    return word_errors([item.text or "" for item in found], [item.pred_text for item in found])


def _row(system: System, heard: Heard, found: Mapping[System, Heard]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": system.name,
        "encoders": system.encoders,
        "interface": system.interface,
        "rate": bootstrap_measure(lambda rate: rate, heard.errors),
        "seeds": heard.seeds,
    }
    for key, other in _references(system, found):
        row[key] = {
            "system": other.name,
            "difference": bootstrap_measure(lambda mine, rate: mine - rate, heard.errors, found[other].errors),
        }
    return row


def _references(system: System, found: Mapping[System, Heard]) -> Iterator[tuple[str, System]]:
    """What a system is compared with: a plain weighted sum, a control of its size, and its best encoder alone."""
    if system.like is None and system.mode != CONTROL:
        for key, other in (
            ("weighted sum", System(system.upstreams, CONTROL)),
            ("control", System(system.upstreams, CONTROL, system.mode)),
        ):
            if other in found:
                yield key, other
    if len(system.upstreams) > 1 and system.like is None:
        # Concatenation of one model is the interface itself. The best one on the test set itself: no favour to fusion.
        mode = "hconv" if system.mode == "chconv" else system.mode
        alone = [item for name in system.upstreams if (item := System((name,), mode)) in found]
        if alone:
            yield "best alone", min(alone, key=lambda item: sum(found[item].seeds))


def _spread(found: Mapping[System, Errors]) -> dict[str, Any]:
    """What the choice of the pair decides, and what the choice of the interface does.

    The pair with the lowest mean rate over the interfaces less the one with the highest, and the interface with the
    lowest mean rate over the pairs less that with the highest; nothing where there is no choice.
    """
    plain = [item for item in found if len(item.upstreams) == 2 and item.like is None]
    by_pair: dict[str, list[System]] = {}
    by_interface: dict[str, list[System]] = {}
    for item in plain:
        by_pair.setdefault(item.encoders, []).append(item)
        by_interface.setdefault(item.interface, []).append(item)
    if min(len(by_pair), len(by_interface)) < 2:
        return {}
    return {"pairs": _apart(by_pair, found), "interfaces": _apart(by_interface, found)}


def _apart(groups: Mapping[str, Sequence[System]], found: Mapping[System, Errors]) -> dict[str, Any]:
    def mean(*rates: Any) -> Any:
        return np.mean(rates, axis=0)

    ranked = sorted(groups, key=lambda name: bootstrap_measure(mean, *(found[item] for item in groups[name])).value)
    best, worst = ([found[item] for item in groups[name]] for name in (ranked[0], ranked[-1]))
    difference = bootstrap_measure(lambda *rates: mean(*rates[: len(best)]) - mean(*rates[len(best) :]), *best, *worst)
    return {"best": ranked[0], "worst": ranked[-1], "difference": difference}


def hypothesis_files(context: Context) -> list[Path]:
    """What stage 6 leaves."""
    found = tasks(context.config)
    files = [
        context.expdir / "decode" / run / f"{name}.jsonl"
        for task in found
        for run in all_runs(context, task)
        for name in task.cuts(context, "test")
    ]
    return [*files, *(cost_file(context, task) for task in found)]


def score_files(context: Context) -> list[Path]:
    """What stage 7 leaves."""
    return [context.expdir / "scores.json"]
