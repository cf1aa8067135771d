"""Stages 7 and 8 of an adaptation recipe: what was learnt, what was lost, and the report of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..reporting.retention import write_results
from ..scoring.error_rates import ErrorCounts, sum_counts, word_errors
from ..scoring.retention import bootstrap_measure, mean_rate, relative_change
from ..training.decode import read_hypotheses
from .adaptation import Setting, adapted_path, evaluated, settings, tuned_path
from .data import notice, speech_sets
from .engine import Context
from .models import model_path

Utterances = Mapping[str, Sequence[ErrorCounts]]


@dataclass(frozen=True)
class _Heard:
    """Errors of a model, or of several seeds together, on one split: utterances by source set, and on the target."""

    source: Utterances
    target: Utterances

    @property
    def rates(self) -> tuple[float, float]:
        """Macro mean over the source sets, and the target's rate."""
        return _mean(self.source), _mean(self.target)


def score(context: Context) -> None:
    """Stage 7: error rates of every setting, and its gain and drop against the reference, with intervals."""
    config = context.config
    compared = settings(config)
    base = {split: _heard(context, ["base"], split) for split in ("dev", "test")}
    names = {setting.name: [setting.model(seed) for seed in config["seeds"]] for setting in compared}
    dev = {name: _heard(context, seeds, "dev").rates for name, seeds in names.items()}
    test = {name: _heard(context, seeds, "test") for name, seeds in names.items()}
    reference = config["score"]["reference"]
    best = chosen(compared, dev, reference, config["score"]["tolerance"])
    table: dict[str, Any] = {
        "base": {"dev": base["dev"].rates, **_alone(base["test"], base["test"])},
        "reference": reference,
        "settings": [],
    }
    for setting in compared:
        heard = test[setting.name]
        row = {
            "name": setting.name,
            "method": setting.method,
            "value": setting.value,
            "origin": origin(setting, reference),
            "chosen": setting.name in best,
            "dev": dev[setting.name],
            **_alone(heard, _repeated(base["test"], len(config["seeds"]))),
            **_against(heard, test[reference], _repeated(base["test"], len(config["seeds"]))),
            "seeds": [_heard(context, [model], "test").rates for model in names[setting.name]],
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
        names = [*filter(None, [origin(own[0], options["reference"])]), *(setting.name for setting in own)]
        found[method] = []
        for level in options["levels"]:
            values = [_at(level, [rates[name][seed] for name in names]) for seed in range(len(rates[own[0].name]))]
            reached = [value for value in values if value is not None]
            spread = [sum(reached) / len(values), min(reached), max(reached)] if len(reached) == len(values) else None
            found[method].append(spread)
    return found


def origin(setting: Setting, reference: str) -> str | None:
    """The setting that a method's curve starts from: what is scaled, or the reference that is held back."""
    if setting.value is None:
        return None
    return setting.of.name if setting.of else setting.start or reference


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


def _heard(context: Context, names: Sequence[str], split: str) -> _Heard:
    """Errors of models on the same utterances, added utterance by utterance."""

    def read(name: str, domain: str) -> list[ErrorCounts]:
        path = context.expdir / "decode" / name / f"{evaluated(domain, split)}.jsonl"
        heard = read_hypotheses(path)
        return word_errors([item.text or "" for item in heard], [item.pred_text for item in heard])

    def together(domain: str) -> list[ErrorCounts]:
        runs = [read(name, domain) for name in names]
        return [sum_counts(utterance) for utterance in zip(*runs, strict=True)]

    target = context.config["target"]
    return _Heard({domain: together(domain) for domain in context.config["source"]}, {target: together(target)})


def _repeated(heard: _Heard, times: int) -> _Heard:
    """One model's errors as if it had been run that often, to be compared with the sum over as many seeds."""

    def repeat(sets: Utterances) -> Utterances:
        return {name: [sum_counts([item] * times) for item in counts] for name, counts in sets.items()}

    return _Heard(repeat(heard.source), repeat(heard.target))


def _alone(heard: _Heard, base: _Heard) -> dict[str, Any]:
    return {
        "source": bootstrap_measure(lambda rate: rate, heard.source),
        "source_micro": bootstrap_measure(lambda rate: rate, heard.source, average="micro"),
        "target": bootstrap_measure(lambda rate: rate, heard.target),
        "forgetting": bootstrap_measure(lambda after, before: after - before, heard.source, base.source),
        "sets": {name: asdict(sum_counts(counts)) for name, counts in {**heard.source, **heard.target}.items()},
    }


def _against(heard: _Heard, reference: _Heard, base: _Heard) -> dict[str, Any]:
    def gain(model: Any, other: Any) -> Any:
        return -relative_change(model, other)

    def recovered(model: Any, other: Any, before: Any) -> Any:
        lost = other - before
        return -relative_change(model - before, np.where(lost > 0, lost, np.nan))

    return {
        "backward_gain": bootstrap_measure(gain, heard.source, reference.source),
        "backward_gain_micro": bootstrap_measure(gain, heard.source, reference.source, average="micro"),
        "recovered": bootstrap_measure(recovered, heard.source, reference.source, base.source),
        "new_domain_drop": bootstrap_measure(relative_change, heard.target, reference.target),
    }


def _change(context: Context, setting: Setting) -> dict[str, float]:
    """How far the weights moved, mean over the seeds."""
    from ..reporting.weights import change_of, small_factors

    base = model_path(context, "base")
    found = []
    for seed in context.config["seeds"]:
        name = setting.model(seed)
        change = change_of(adapted_path(context, name), base)
        if setting.of is None and (tuned := tuned_path(context, setting, name)).suffix != ".nemo":
            change["small_factors"] = small_factors(tuned)
        found.append(change)
    return {key: sum(item[key] for item in found) / len(found) for key in found[0]}


def _mean(sets: Utterances) -> float:
    return mean_rate({name: sum_counts(counts) for name, counts in sets.items()})
