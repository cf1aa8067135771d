"""Stages 7 and 8 of a language recipe: what the new language gained, what the old ones lost, and the report of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ...reporting.languages import write_results
from ...scoring import bootstrap_interval
from ...scoring.error_rates import ErrorCounts, sum_counts
from ...scoring.merge_metrics import normalised_performance
from ...scoring.retention import bootstrap_measure, relative_change
from ..data import notice, speech_sets
from ..engine import Context, seconds_of
from .choice import METRICS, errors
from .search import chosen, hypotheses, models, test, tested, training_data_seen
from .training import JOINT

Errors = Mapping[str, Sequence[ErrorCounts]]
"""Errors of every utterance, by language."""


def score(context: Context) -> None:
    """Stage 7: error rates of every model in every language, and what each method's extension gains and loses."""
    config = context.config
    table: dict[str, Any] = {"rates": {}, "methods": {}}
    for metric in METRICS:
        heard: dict[str, Errors] = {
            model: {name: errors(hypotheses(context, model, name, test), metric) for name in tested(context)}
            for model in models(context)
        }
        table["rates"][metric] = {
            model: {
                name: {**asdict(sum_counts(counts)), "interval": bootstrap_interval([counts])}
                for name, counts in by_language.items()
            }
            for model, by_language in heard.items()
        }
        measures = {
            method: compare(heard, method, config["old"], config["new"], config["untouched"])
            for method in config["merge"]["methods"]
        }
        table["methods"][metric] = dict(measures)
        if JOINT in heard:
            experts = {name: heard[name][name] for name in config["old"]}
            joint = measure(heard, heard[JOINT], experts, config["old"], config["new"], [])
            table["methods"][metric][JOINT] = {JOINT: joint}
        for method, found in measures.items():
            gain, lost = (100 * found["extended"][key][0] for key in ("gain", "loss"))
            context.say(f"{method}, {metric}: {gain:.0f} % of the expert's gain, old languages {lost:+.1f} %")
    table["chosen"] = {kind: chosen(context, kind) for kind in ("merged", "extended", "again")}
    table["training_data"] = training_data_seen(context)
    (context.expdir / "scores.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def compare(
    heard: Mapping[str, Errors], method: str, old: Sequence[str], new: str, untouched: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """What adding a language by a method did.

    Args:
        heard: errors by model: ``base``, an expert by the name of each language, and ``merged-``, ``extended-`` and
            ``again-`` (merged anew from all experts) with the method's name.
        method: the method.
        old: languages of the merged model.
        new: the language that was added.
        untouched: languages without an expert.

    Returns:
        :func:`measure` of the extended model and of the one merged again; of the merged model ``G`` alone.
    """
    before = heard[f"merged-{method}"]
    after = {
        kind: measure(heard, heard[f"{kind}-{method}"], before, old, new, untouched) for kind in ("extended", "again")
    }
    return {"merged": {"G": performance(heard, before, old)}, **after}


def measure(
    heard: Mapping[str, Errors],
    model: Errors,
    before: Errors,
    old: Sequence[str],
    new: str,
    untouched: Sequence[str],
) -> dict[str, Any]:
    """Intervals ``gain`` (of the new expert's), ``loss``, ``lost`` by language, ``moved``; the number ``G``.

    Args:
        heard: errors by model, of the base and the experts.
        model: the one that knows the new language.
        before: what its old languages are compared with.
        old: languages of the merged model.
        new: the language that was added.
        untouched: languages without an expert.
    """
    return {
        "gain": gain_share(heard, model, new),
        "loss": loss(before, model, old),
        "lost": {name: loss(before, model, [name]) for name in old},
        "moved": loss(before, model, untouched) if untouched else None,
        "G": performance(heard, model, [*old, new]),
    }


def gain_share(heard: Mapping[str, Errors], model: Errors, language: str) -> tuple[float, float, float]:
    """Share of the expert's gain over the base that a model has in a language; NaN where the expert gains nothing."""
    systems = (heard["base"], model, heard[language])
    only = [{language: system[language]} for system in systems]
    return bootstrap_measure(_recovered, *only)


def loss(before: Errors, after: Errors, languages: Sequence[str]) -> tuple[float, float, float]:
    """By how much the mean error rate over languages rose, as a share."""
    first, second = ({name: side[name] for name in languages} for side in (before, after))
    return bootstrap_measure(lambda a, b: relative_change(b, a), first, second)


def performance(heard: Mapping[str, Errors], model: Errors, languages: Sequence[str]) -> float:
    """Normalised performance of a model over languages that have an expert; NaN where none of them gains."""
    base, mine, experts = (
        {name: sum_counts(system(name)).rate for name in languages}
        for system in (heard["base"].__getitem__, model.__getitem__, lambda name: heard[name][name])
    )
    return normalised_performance(base, experts, mine).value


def _recovered(base: Any, model: Any, expert: Any) -> Any:
    gain = np.asarray(base - expert, dtype=float)
    return (base - model) / np.where(gain > 0, gain, np.nan)


def write_report(context: Context) -> None:
    """Stage 8: ``RESULTS.md`` and two pictures."""
    config = context.config
    sets = speech_sets(context)
    made = write_results(
        context.expdir,
        title=config["title"],
        notice=notice(context),
        command=config["command"],
        scores=json.loads((context.expdir / "scores.json").read_text(encoding="utf-8")),
        old={name: sets[name].title for name in config["old"]},
        new=(config["new"], sets[config["new"]].title),
        untouched={name: sets[name].title for name in config["untouched"]},
        tolerance=config["extend"]["tolerance"],
        stage_seconds=seconds_of(context),
    )
    for path in made:
        context.say(f"wrote {path}")


def score_files(context: Context) -> list[Path]:
    """What stage 7 leaves."""
    return [context.expdir / "scores.json"]


def report_files(context: Context) -> list[Path]:
    """What stage 8 leaves."""
    return [context.expdir / name for name in ("RESULTS.md", "languages.png", "trade_off.png")]
