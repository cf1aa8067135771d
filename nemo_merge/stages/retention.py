"""Stages 7 and 8 of an adaptation recipe: what was learnt, what was lost, and the report of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import numpy as np

from ..reporting.retention import write_results
from ..scoring.error_rates import ErrorCounts, sum_counts, utterance_errors
from ..scoring.retention import bootstrap_measure, mean_rate, relative_change
from ..scoring.tokens import mixed_tokens
from .adaptation import adapted_path, adapts, evaluated, tuned_path
from .compared import Setting, settings
from .data import cuts_path, notice, speech_sets
from .engine import Context, seconds_of
from .models import model_path
from .results import heard_in
from .sets import OwnSet
from .switching import Switching, read_switching

Utterances = Mapping[str, Sequence[ErrorCounts]]


@dataclass(frozen=True)
class _Heard:
    """Errors of a model, or of several together, on one split, utterance by utterance.

    Attributes:
        source: by source set.
        target: by target set, which is one.
        words: those at some words of the target, by kind.
    """

    source: Utterances
    target: Utterances
    words: Utterances = field(default_factory=dict)

    @property
    def rates(self) -> tuple[float, float]:
        """Macro mean over the source sets, and the target's rate."""
        return _mean(self.source), _mean(self.target)


def score(context: Context) -> None:
    """Stage 7: error rates of every setting, and its gain and drop against the reference, with intervals."""
    config = context.config
    compared = settings(config)
    reference, seeds = config["score"]["reference"], config["seeds"]
    words = switching(context)
    heard = {"dev": _reader(context, "dev"), "test": _reader(context, "test", words)}
    runs = {
        setting.name: {split: [read(name) for name in setting.runs(seeds)] for split, read in heard.items()}
        for setting in compared
    }
    dev = {name: _together(found["dev"]).rates for name, found in runs.items()}
    best = chosen(compared, dev, reference, config["score"]["tolerance"])
    base = heard["test"]("base")
    table: dict[str, Any] = {
        "base": {"dev": heard["dev"]("base").rates, **_alone(base, base)},
        "reference": reference,
        "switching": words.summary(),
        "settings": [],
    }
    lora, before = (_together(found) for found in (runs[reference]["test"], [base] * len(seeds)))
    for setting in compared:
        found = runs[setting.name]["test"]
        mine = _together(found * (len(seeds) // len(found)))  # one merge of all seeds counts as often as they do
        row = {
            "name": setting.name,
            "method": setting.method,
            "value": setting.value,
            "origin": setting.origin(reference),
            "chosen": setting.name in best,
            "dev": dev[setting.name],
            **_alone(mine, before),
            **_against(mine, lora, before),
            "seeds": [run.rates for run in found],
            "change": _change(context, setting),
        }
        table["settings"].append(row)
        context.say(f"{setting.name}: source {100 * row['source'][0]:.1f} %, target {100 * row['target'][0]:.1f} %")
    table["levels"] = list(config["score"]["levels"])
    table["at_level"] = at_levels(compared, {row["name"]: row["seeds"] for row in table["settings"]}, config["score"])
    (context.expdir / "scores.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def chosen(
    compared: Sequence[Setting], dev: Mapping[str, tuple[float, float]], reference: str, tolerance: float
) -> set[str]:
    """The setting of every method that forgets least among those that learn the target about as well as the reference.

    Args:
        compared: all settings.
        dev: source and target error rates on the development sets, by the setting's name.
        reference: setting to compare with.
        tolerance: target error rate that is allowed above the reference's, as a share of it. A method with no such
            setting is represented by the one that learns the target best.
    """
    allowed = dev[reference][1] * (1 + tolerance)
    best = set()
    for method in {setting.method: None for setting in compared}:
        own = [setting.name for setting in compared if setting.method == method]
        near = [name for name in own if dev[name][1] <= allowed]
        best.add(min(near, key=lambda name: dev[name][0]) if near else min(own, key=lambda name: dev[name][1]))
    return best


def at_levels(
    compared: Sequence[Setting], rates: Mapping[str, Sequence[tuple[float, float]]], options: Mapping[str, Any]
) -> dict[str, list[list[float] | None]]:
    """Source error rate of every method where its target error rate is at a given level.

    A method's settings, and what it starts from, make a curve; between two of its points it is taken as straight.

    Args:
        compared: all settings.
        rates: source and target error rates of every seed, by the setting's name.
        options: ``levels``, target error rates; ``reference``, what methods that hold an adapter back start from.

    Returns:
        For every method with a parameter, by level: mean, least and largest over the seeds; None where the curve of a
        seed does not reach the level.
    """
    found: dict[str, list[list[float] | None]] = {}
    for method in {setting.method: None for setting in compared if setting.value is not None}:
        own = [setting for setting in compared if setting.method == method]
        names = [*filter(None, [own[0].origin(options["reference"])]), *(setting.name for setting in own)]
        found[method] = []
        for level in options["levels"]:
            values = [_at(level, [rates[name][seed] for name in names]) for seed in range(len(rates[own[0].name]))]
            reached = [value for value in values if value is not None]
            spread = [sum(reached) / len(values), min(reached), max(reached)] if len(reached) == len(values) else None
            found[method].append(spread)
    return found


def _at(level: float, points: Sequence[tuple[float, float]]) -> float | None:
    """Source error rate at a target error rate, on the line through ``(source, target)`` points."""
    source, target = zip(*sorted(points, key=lambda point: point[1]), strict=True)
    return float(np.interp(level, target, source)) if target[0] <= level <= target[-1] else None


def write_report(context: Context) -> None:
    """Stage 8: ``RESULTS.md`` and a picture."""
    config, found = context.config, speech_sets(context)
    made = write_results(
        context.expdir,
        title=config["title"],
        notice=notice(context),
        command=config["command"],
        scores=json.loads((context.expdir / "scores.json").read_text(encoding="utf-8")),
        source={name: found[name].title for name in config["source"]},
        target=found[config["target"]].title,
        labels={**_labels(config["fine_tune"]), **_labels(config["merge"])},
        seeds=len(config["seeds"]),
        tolerance=config["score"]["tolerance"],
        stage_seconds=seconds_of(context),
    )
    for path in made:
        context.say(f"wrote {path}")


def score_files(context: Context) -> list[Any]:
    """What stage 7 leaves."""
    return [context.expdir / "scores.json"]


def report_files(context: Context) -> list[Any]:
    """What stage 8 leaves."""
    return [context.expdir / "RESULTS.md", context.expdir / "trade_off.png"]


def _labels(section: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """How a method is shown, and the symbol of the parameter that it sweeps."""
    return {name: (given["label"], given.get("symbol", "")) for name, given in section["methods"].items()}


def _reader(context: Context, split: str, words: Switching | None = None) -> Callable[[str], _Heard]:
    """A function that counts the errors of a model on a split, once; with ``words`` also those at some of them.

    Han characters and kana are counted one by one, words of other scripts whole, so that where there are none of the
    former it is the word error rate.
    """
    source, target = context.config["source"], context.config["target"]

    @cache
    def read(model: str) -> _Heard:
        errors, at_words = {}, {}
        for name in (*source, target):
            heard = heard_in(context, name, context.expdir / "decode" / model / f"{evaluated(name, split)}.jsonl")
            texts = {item.id: item.pred_text for item in heard}
            errors[name] = utterance_errors([item.text or "" for item in heard], [*texts.values()], mixed_tokens)
            if name == target and words:
                at_words = words.errors(texts)
        return _Heard({name: errors[name] for name in source}, {target: errors[target]}, at_words)

    return read


def switching(context: Context) -> Switching:
    """The words of the target's test set and their languages."""
    from lhotse import CutSet

    name = context.config["target"]
    item, path = speech_sets(context)[name], cuts_path(context, name, "test")
    used = {said.id for cut in CutSet.from_file(path) for said in cut.supervisions}
    original = item.source(context, "test") if isinstance(item, OwnSet) else path
    spoken = (said for cut in CutSet.from_file(original) for said in cut.supervisions if said.id in used)
    return read_switching(spoken, item.rewrite)


def _together(runs: Sequence[_Heard]) -> _Heard:
    """Errors of several models on the same utterances, added utterance by utterance."""

    def add(found: Sequence[Utterances]) -> Utterances:
        columns = {name: zip(*(run[name] for run in found), strict=True) for name in found[0]}
        return {name: [sum_counts(utterance) for utterance in column] for name, column in columns.items()}

    return _Heard(add([r.source for r in runs]), add([r.target for r in runs]), add([r.words for r in runs]))


def _alone(heard: _Heard, base: _Heard) -> dict[str, Any]:
    return {
        "source": bootstrap_measure(lambda rate: rate, heard.source),
        "source_micro": bootstrap_measure(lambda rate: rate, heard.source, average="micro"),
        "target": bootstrap_measure(lambda rate: rate, heard.target),
        "forgetting": bootstrap_measure(lambda after, before: after - before, heard.source, base.source),
        "words": {kind: bootstrap_measure(lambda rate: rate, {kind: found}) for kind, found in heard.words.items()},
        "sets": {name: asdict(sum_counts(counts)) for name, counts in {**heard.source, **heard.target}.items()},
    }


def _against(heard: _Heard, reference: _Heard, base: _Heard) -> dict[str, Any]:
    def gain(model: Any, other: Any) -> Any:
        return -relative_change(model, other)

    def recovered(model: Any, other: Any, before: Any) -> Any:
        lost = other - before
        return -relative_change(model - before, np.where(lost > 0, lost, np.nan))

    def kept(model: Any, other: Any, before: Any) -> Any:
        gained = before - other
        return (before - model) / np.where(gained > 0, gained, np.nan)

    return {
        "backward_gain": bootstrap_measure(gain, heard.source, reference.source),
        "backward_gain_micro": bootstrap_measure(gain, heard.source, reference.source, average="micro"),
        "recovered": bootstrap_measure(recovered, heard.source, reference.source, base.source),
        "gain_kept": bootstrap_measure(kept, heard.target, reference.target, base.target),
        "new_domain_drop": bootstrap_measure(relative_change, heard.target, reference.target),
    }


def _change(context: Context, setting: Setting) -> dict[str, float]:
    """How far the weights moved, mean over the models."""
    from ..reporting.weights import change_of, small_factors

    base = model_path(context, "base")
    found = []
    for name, seeds in setting.runs(context.config["seeds"]).items():
        change = change_of(adapted_path(context, name), base)
        if adapts(setting):
            change["small_factors"] = small_factors(tuned_path(context, setting, seeds[0]))
        found.append(change)
    return {key: sum(item[key] for item in found) / len(found) for key in found[0]}


def _mean(sets: Utterances) -> float:
    return mean_rate({name: sum_counts(counts) for name, counts in sets.items()})
