"""``RESULTS.md`` of a speech translation recipe and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .document import write_document
from .markdown import table

_EXPLANATION = (
    "Intervals are 95 % bootstrap intervals over utterances, 1000 samples. *Recovered gain* is the mean over the tasks "
    "of (base - merged) / (base - expert) of the word error rate, and of BLEU with its sign turned: 100 % is as good "
    "as the experts, each on its own task, 0 % is the base. Figures in bold are those of tasks whose expert is in the "
    "merge. Where a method has a parameter, its value was chosen on the development sets of these tasks. Joint "
    "training sees the data of all experts of the group."
)


def write_results(
    folder: Path,
    *,
    title: str,
    notice: str,
    command: str,
    scores: Mapping[str, Any],
    tasks: Mapping[str, str],
    groups: Mapping[str, tuple[str, Sequence[str]]],
    labels: Mapping[str, str],
    stage_seconds: Mapping[str, float],
) -> list[Path]:
    """Writes ``RESULTS.md`` and ``gains.png`` and returns their paths.

    Args:
        folder: where they go.
        title: heading.
        notice: what every reader of the figures must know.
        command: what made them.
        scores: content of ``scores.json``.
        tasks: title of every task.
        groups: title, and the tasks whose experts are merged, by the group's name.
        labels: how a merged model is called, by its name.
        stage_seconds: wall-clock seconds of every stage.
    """
    picture = folder / "gains.png"
    draw_gains(picture, scores["gains"], {name: title for name, (title, _) in groups.items()}, notice)
    sets = scores["sets"]
    header = [f"{shown}, {'BLEU' if 'bleu' in sets['base'][name] else 'WER %'}" for name, shown in tasks.items()]
    trained = [("base", "base"), *((f"expert: {shown}", name) for name, shown in tasks.items())]
    parts = [
        "## Word error rate and BLEU",
        "<!-- --8<-- [start:results] -->",
        "### Base and experts",
        table(["model", *header], [[shown, *_cells(sets[name], tasks, [name])] for shown, name in trained]),
    ]
    for name, (shown, experts) in groups.items():
        rows = []
        for label, gain in scores["gains"][name].items():
            model = scores["chosen"][name].get(label, f"{name}-{label}")
            shown_as = labels.get(model, "joint training")
            rows.append([shown_as, *_cells(sets[model], tasks, experts), _gain(gain["mean"])])
        parts += [f"### {shown}", table(["model", *header, "recovered gain"], rows)]
        if undefined := sorted({task for gain in scores["gains"][name].values() for task in gain["undefined"]}):
            parts.append(f"No gain to recover on {', '.join(tasks[task] for task in undefined)}.")
    parts += [
        "<!-- --8<-- [end:results] -->",
        _EXPLANATION,
        f"![Recovered gain by group and method]({picture.name})",
        "## chrF of the translations",
        _chrf_table(sets, tasks),
        *_signatures(sets),
    ]
    results = write_document(folder / "RESULTS.md", title, notice, command, parts, stage_seconds)
    return [results, picture]


def draw_gains(path: Path, gains: Mapping[str, Mapping[str, Any]], groups: Mapping[str, str], notice: str) -> None:
    """Bars of the recovered gain by group and method with their intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    methods = list(dict.fromkeys(label for by_method in gains.values() for label in by_method))
    figure, axes = pyplot.subplots(figsize=(9.5, 4.2), layout="constrained")
    width = 0.84 / len(methods)
    for index, method in enumerate(methods):
        at = [place for place, name in enumerate(groups) if method in gains[name]]
        found = [gains[name][method]["mean"] for name in groups if method in gains[name]]
        colour = "#9aa0a6" if method == "joint" else pyplot.colormaps["viridis"](index / len(methods))
        axes.bar(
            [place + (index - (len(methods) - 1) / 2) * width for place in at],
            [100 * value for value, _, _ in found],
            width * 0.92,
            yerr=[
                [100 * (value - low) for value, low, _ in found],
                [100 * (high - value) for value, _, high in found],
            ],
            color=colour,
            label="joint training" if method == "joint" else method,
            error_kw={"lw": 0.8, "ecolor": "#444"},
        )
    axes.axhline(100, color="#c5221f", linestyle="--", lw=1.2, label="each task's expert")
    axes.axhline(0, color="#444", lw=0.8)
    axes.set_xticks(range(len(groups)), [title.replace(": ", ":\n") for title in groups.values()])
    axes.set_ylabel("recovered gain, %")
    axes.set_title(notice, fontsize=8, color="#555")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, -0.34))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _cells(by_task: Mapping[str, Any], tasks: Mapping[str, str], own: Sequence[str]) -> list[str]:
    cells = []
    for name in tasks:
        found = by_task[name]
        value, low, high = found["bleu"] if "bleu" in found else (100 * share for share in found["wer"])
        shown = f"{value:.1f} [{low:.1f}, {high:.1f}]"
        cells.append(f"**{shown}**" if name in own else shown)
    return cells


def _gain(mean: Sequence[float]) -> str:
    value, low, high = mean
    return f"{100 * value:.0f} % [{100 * low:.0f}, {100 * high:.0f}]" if value == value else ""


def _chrf_table(sets: Mapping[str, Any], tasks: Mapping[str, str]) -> str:
    translated = {name: title for name, title in tasks.items() if "bleu" in sets["base"][name]}
    rows = [[model, *(f"{by_task[name]['chrf']:.1f}" for name in translated)] for model, by_task in sets.items()]
    return table(["model", *translated.values()], rows)


def _signatures(sets: Mapping[str, Any]) -> list[str]:
    found = sorted({item["signature"] for item in sets["base"].values() if "signature" in item})
    return [f"BLEU: `{'`, `'.join(found)}`."] if found else []
