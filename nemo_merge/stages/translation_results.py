"""Stages 6 to 8 of a speech translation recipe: decode, choose on development sets, score, report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..reporting.translation import write_results
from ..scoring.error_rates import word_errors
from ..scoring.translation import bleu, chrf, resampled_bleu
from ..training.decode import read_hypotheses
from .data import notice
from .engine import Context, seconds_of
from .models import merged_path, model_path
from .results import heard_in, transcribe_each
from .translation import Merge, Task, base_path, groups, joint_name, merges, task_path, tasks, trained

if TYPE_CHECKING:
    from jaxtyping import Float

SAMPLES = 1000
_DEV = "decode-dev"


class Score(NamedTuple):
    """What a model reaches on a task, as a share of words that are wrong, or of BLEU's 100 points that are missing.

    Attributes:
        value: of all utterances.
        drawn: of bootstrap samples, the same for every model.
    """

    value: float
    drawn: Float[np.ndarray, " samples"]


def decode(context: Context) -> None:
    """Stage 6: merges do their own tasks' development sets, which choose, then all models do all test sets."""
    found, members = tasks(context.config), groups(context.config)
    compared = list(merges(context.config))
    dev = {
        item.name: (
            merged_path(context, item.name),
            {name: task_path(context, name, "dev") for name in members[item.group]},
        )
        for item in compared
        if item.value is not None
    }
    transcribe_each(context, dev, _DEV)
    errors = {
        name: float(np.mean([_read(context, _DEV, name, found[task], 0).value for task in sets]))
        for name, (_, sets) in dev.items()
    }
    best = chosen(compared, errors)
    _chosen_path(context).write_text(json.dumps([item.name for item in best], indent=1) + "\n", encoding="utf-8")
    test = {name: task_path(context, name, "test") for name in found}
    transcribe_each(context, {name: (path, test) for name, path in _models(context).items()})


def chosen(compared: Sequence[Merge], errors: Mapping[str, float]) -> list[Merge]:
    """Of every method in every group the merge with the least mean error on the development sets of its tasks.

    Args:
        compared: all merges.
        errors: mean over the tasks of the word error rate, or of 1 - BLEU / 100, by the merge's name; for those of
            methods that sweep nothing it may be missing.
    """
    best: dict[tuple[str, str], Merge] = {}
    for item in compared:
        known = best.setdefault((item.group, item.method), item)
        if item is not known and errors[item.name] < errors[known.name]:
            best[item.group, item.method] = item
    return list(best.values())


def score(context: Context) -> None:
    """Stage 7: word error rates, BLEU and chrF with intervals, and how much of the experts' gains a merge has."""
    found, members = tasks(context.config), groups(context.config)
    names = list(_models(context))
    scores = {name: {key: _read(context, "decode", name, task) for key, task in found.items()} for name in names}
    table: dict[str, Any] = {
        "sets": {
            name: {key: _shown(context, name, found[key], value) for key, value in by_task.items()}
            for name, by_task in scores.items()
        },
        "gains": {},
        "chosen": {},
    }
    for group, own in members.items():
        models = {item.method: item.name for item in _chosen(context) if item.group == group}
        table["chosen"][group] = models
        if joint_name(group) in scores:
            models = {**models, "joint": joint_name(group)}
        table["gains"][group] = {
            label: recovered_gain(
                {key: scores["base"][key] for key in own},
                {key: scores[key][key] for key in own},
                {key: scores[model][key] for key in own},
            )
            for label, model in models.items()
        }
        for label, gain in table["gains"][group].items():
            context.say(f"{group}, {label}: {100 * gain['mean'][0]:.0f} % of the experts' gains")
    (context.expdir / "scores.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def recovered_gain(
    base: Mapping[str, Score], experts: Mapping[str, Score], merged: Mapping[str, Score]
) -> dict[str, Any]:
    """Mean over tasks of (base - merged) / (base - expert), with its interval.

    The word error rate counts as it is, BLEU with its sign turned. It is the normalised performance of
    :func:`~nemo_merge.scoring.merge_metrics.normalised_performance`; every sample of utterances gives one value.

    Args:
        base: scores by task.
        experts: that of each task's own expert.
        merged: those of the merge.

    Returns:
        ``mean``: value, low, high; ``tasks``: value by task; ``undefined``: tasks whose expert is not better than the
        base, which have no gain to recover. The mean is NaN where there is no other.
    """
    defined = [key for key in experts if experts[key].value < base[key].value]
    values, drawn = {}, []
    for key in defined:
        gain = base[key].drawn - experts[key].drawn
        values[key] = (base[key].value - merged[key].value) / (base[key].value - experts[key].value)
        drawn.append((base[key].drawn - merged[key].drawn) / np.where(gain > 0, gain, np.nan))
    undefined = [key for key in experts if key not in defined]
    if not defined:
        return {"mean": [float("nan")] * 3, "tasks": {}, "undefined": undefined}
    low, high = np.nanquantile(np.mean(drawn, axis=0), [0.025, 0.975])
    return {"mean": [float(np.mean(list(values.values()))), low, high], "tasks": values, "undefined": undefined}


def _read(context: Context, folder: str, model: str, task: Task, samples: int = SAMPLES) -> Score:
    """The score of a model on a task from its hypotheses."""
    references, hypotheses = _texts(context, folder, model, task)
    number = len(references)
    # One row is the utterances as they are; the others, samples, are the same for all models.
    drawn = np.vstack(
        [
            np.ones((1, number), dtype=np.int64),
            np.random.default_rng(0).multinomial(number, np.full(number, 1 / number), size=samples),
        ]
    )
    if task.translates:
        values = 1 - resampled_bleu(references, hypotheses, drawn) / 100
    else:
        counts = word_errors(references, hypotheses)
        values = drawn @ [item.errors for item in counts] / (drawn @ [item.reference_length for item in counts])
    return Score(float(values[0]), values[1:])


def _shown(context: Context, model: str, task: Task, found: Score) -> dict[str, Any]:
    """What ``scores.json`` says: shares of 1 for error rates, points for BLEU and chrF."""
    low, high = np.quantile(found.drawn, [0.025, 0.975])
    references, hypotheses = _texts(context, "decode", model, task)
    common = {"utterances": len(references), "chrf": chrf(references, hypotheses).score}
    if not task.translates:
        return {"wer": [found.value, low, high], **common}
    signature = bleu(references, hypotheses).signature
    return {"bleu": [100 * (1 - value) for value in (found.value, high, low)], **common, "signature": signature}


def _texts(context: Context, folder: str, model: str, task: Task) -> tuple[list[str], list[str]]:
    file = context.expdir / folder / model / f"{task.name}.jsonl"
    heard = read_hypotheses(file) if task.translates else heard_in(context, task.data, file)
    return [item.text or "" for item in heard], [item.pred_text for item in heard]


def _models(context: Context) -> dict[str, Path]:
    """All models that do the test sets, by name."""
    made = {name: model_path(context, name) for name in trained(context.config)}
    best = {item.name: merged_path(context, item.name) for item in _chosen(context)}
    return {"base": base_path(context), **made, **best}


def _chosen(context: Context) -> list[Merge]:
    """What stage 6 chose."""
    if not _chosen_path(context).is_file():
        return []
    names = json.loads(_chosen_path(context).read_text(encoding="utf-8"))
    return [item for item in merges(context.config) if item.name in names]


def _chosen_path(context: Context) -> Path:
    return context.expdir / "chosen.json"


def hypothesis_files(context: Context) -> list[Path]:
    """What stage 6 leaves."""
    names = list(context.config["tasks"])
    found = [context.expdir / "decode" / model / f"{task}.jsonl" for model in _models(context) for task in names]
    return [_chosen_path(context), *found]


def score_files(context: Context) -> list[Path]:
    """What stage 7 leaves."""
    return [context.expdir / "scores.json"]


def write_report(context: Context) -> None:
    """Stage 8: ``RESULTS.md`` and a picture."""
    config = context.config
    values = {item.name: item.value for item in merges(config)}
    methods = {item.name: item.method for item in merges(config)}
    made = write_results(
        context.expdir,
        title=config["title"],
        notice=notice(context),
        command=config["command"],
        scores=json.loads((context.expdir / "scores.json").read_text(encoding="utf-8")),
        tasks={name: task.title for name, task in tasks(config).items()},
        groups={name: (config["groups"][name].get("title") or name, own) for name, own in groups(config).items()},
        labels={name: _label(config, methods[name], values[name]) for name in methods},
        stage_seconds=seconds_of(context),
    )
    for path in made:
        context.say(f"wrote {path}")


def report_files(context: Context) -> list[Path]:
    """What stage 8 leaves."""
    return [context.expdir / "RESULTS.md", context.expdir / "gains.png"]


def _label(config: Mapping[str, Any], method: str, value: float | None) -> str:
    """How a merge is shown: the method with the value of what it sweeps."""
    sweep = config["merge"]["methods"][method].get("sweep", {})
    return f"{method} ({next(iter(sweep))} {value:g})" if value is not None else method
