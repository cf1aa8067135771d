"""``RESULTS.md`` of a recipe that fuses encoders, and its picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .document import write_document
from .markdown import rate, signed, table

Row = Mapping[str, Any]
_EXPLANATION = (
    "Means over {seeds}, with 95 % bootstrap intervals over utterances; differences draw the same utterances for both. "
    "*ws-as-X* is a control: a weighted sum whose downstream model is so wide that there are as many trained "
    "parameters as with interface X. *Best alone* is the encoder of the set that has the lowest error rate on these "
    "test sets behind the same interface (behind hconv, for chconv, which is the same for one encoder): that choice "
    "favours single encoders. Intervals do not know of other encoders, or of other seeds of the encoders."
)
_COSTS = (
    "*Trained*: interface and downstream model. *All*: the encoders too. *RTF*: seconds of processor time, on one "
    "thread, per second of audio, from samples to the result, encoders included. *Memory*: by how much the process "
    "grew at most, weights included."
)


def write_results(
    folder: Path,
    *,
    title: str,
    notice: str,
    command: str,
    scores: Mapping[str, Any],
    encoders: Mapping[str, str],
    comparison: str,
    seeds: int,
    stage_seconds: Mapping[str, float],
) -> list[Path]:
    """Writes ``RESULTS.md`` and ``fusion.png`` and returns their paths.

    Args:
        folder: where they go.
        title: heading.
        notice: what every reader of the figures must know.
        command: what made them.
        scores: content of ``scores.json``.
        encoders: what each encoder is, by name.
        comparison: what was found before anything was fused, in Markdown.
        seeds: number of runs of every system.
        stage_seconds: wall-clock seconds of every stage.
    """
    picture = folder / "fusion.png"
    draw(picture, scores, notice)
    parts = [
        "## Encoders",
        table(["encoder", "what it is"], [[name, what] for name, what in encoders.items()]),
        "<!-- --8<-- [start:results] -->",
        *(part for task in scores.values() for part in _task_parts(task)),
        "<!-- --8<-- [end:results] -->",
        _EXPLANATION.format(seeds=f"{seeds} seeds" if seeds > 1 else "one seed"),
        f"![Error rates by encoders and interface]({picture.name})",
        "## Interfaces against a weighted sum, and sets of encoders against the best of them",
        *(part for task in scores.values() for part in _difference_parts(task)),
        "## What they cost",
        "<!-- --8<-- [start:costs] -->",
        *(part for task in scores.values() for part in _cost_parts(task)),
        "<!-- --8<-- [end:costs] -->",
        _COSTS,
        comparison,
    ]
    return [write_document(folder / "RESULTS.md", title, notice, command, parts, stage_seconds), picture]


def draw(path: Path, scores: Mapping[str, Any], notice: str) -> None:
    """Error rates with intervals: a panel per task, a row per set of encoders, a mark per interface."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sets = list(dict.fromkeys(row["encoders"] for task in scores.values() for row in task["systems"]))
    modes = _interfaces(row for task in scores.values() for row in task["systems"])
    figure, panels = pyplot.subplots(
        1, len(scores), figsize=(5.6 * len(scores), 0.75 * len(sets) + 1.8), layout="constrained", squeeze=False,
        sharey=True,
    )  # fmt: skip
    for axes, task in zip(panels[0], scores.values(), strict=True):
        for place in range(len(sets)):
            if place % 2:
                axes.axhspan(place - 0.5, place + 0.5, color="#f3f4f6", lw=0)
        for index, mode in enumerate(modes):
            rows = [row for row in task["systems"] if row["interface"] == mode]
            at = [sets.index(row["encoders"]) + (index - (len(modes) - 1) / 2) * 0.8 / len(modes) for row in rows]
            value, low, high = ([100 * row["rate"][key] for row in rows] for key in range(3))
            spread = [
                [middle - end for middle, end in zip(value, low, strict=True)],
                [end - middle for middle, end in zip(value, high, strict=True)],
            ]
            axes.errorbar(
                value, at, xerr=spread, fmt="D" if _is_control(mode) else "o", ms=4, lw=0.9, label=mode,
                color=pyplot.colormaps["tab10"](index % 10), mfc="white" if _is_control(mode) else None,
            )  # fmt: skip
        axes.set_xlabel(f"{task['title']}: {task['error']}, %")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_yticks(range(len(sets)), [name.replace("+", " +\n") for name in sets], fontsize=8)
    panels[0][0].invert_yaxis()
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    figure.suptitle(notice, fontsize=8, color="#555")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _interfaces(rows: Iterable[Row]) -> list[str]:
    """Interfaces in the order in which they come, controls behind them."""
    return sorted(dict.fromkeys(row["interface"] for row in rows), key=_is_control)


def _is_control(interface: str) -> bool:
    return "-as-" in interface


def _task_parts(task: Mapping[str, Any]) -> list[str]:
    """Error rates: a row per set of encoders, a column per interface."""
    rows = _grid(task["systems"], lambda row: rate(row["rate"]), lowest=lambda row: row["rate"][0])
    parts = [f"### {task['title']}: {task['error']}, %", rows]
    if spread := task["spread"]:
        pairs, interfaces = (
            f"{found['best']} less {found['worst']}: {signed(found['difference'])}" for found in spread.values()
        )
        parts.append(
            f"Best pair less worst pair, mean over their interfaces: {pairs}. Best interface less worst interface, "
            f"mean over the pairs: {interfaces}."
        )
    return parts


def _difference_parts(task: Mapping[str, Any]) -> list[str]:
    header = ["encoders", "interface", "less a weighted sum", "less a control of its size", "less the best alone", ""]
    rows = []
    for row in task["systems"]:
        found = [row.get(key) for key in ("weighted sum", "control", "best alone")]
        if any(found):
            shown = [signed(item["difference"]) if item else "" for item in found]
            alone = found[-1]["system"].rpartition("-")[0] if found[-1] else ""
            rows.append([row["encoders"], row["interface"], *shown, alone])
    return [f"### {task['title']}, points of the {task['error']}", table(header, rows)] if rows else []


def _cost_parts(task: Mapping[str, Any]) -> list[str]:
    header = ["encoders", "interface", "trained, M", "all, M", "RTF", "memory, MB"]
    rows = []
    for row in task["systems"]:
        cost = task["costs"][row["name"]]
        counts = [f"{cost[key] / 1e6:.2f}" for key in ("trained", "parameters")]
        speed = [f"{cost['real_time_factor']:.4f}", f"{cost['memory'] / 1e6:.0f}"]
        rows.append([row["encoders"], row["interface"], *counts, *speed])
    return [f"### {task['title']}", table(header, rows)]


def _grid(rows: Sequence[Row], shown: Any, lowest: Any) -> str:
    """Cells by encoders and interface; the lowest of every row is bold."""
    modes = _interfaces(rows)
    lines = []
    for name in dict.fromkeys(row["encoders"] for row in rows):
        own = {row["interface"]: row for row in rows if row["encoders"] == name}
        best = min(own, key=lambda mode: lowest(own[mode]))
        cells = [shown(own[mode]) if mode in own else "" for mode in modes]
        lines.append(
            [name, *(f"**{cell}**" if mode == best else cell for mode, cell in zip(modes, cells, strict=True))]
        )
    return table(["encoders", *modes], lines)
