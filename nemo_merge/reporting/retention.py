"""``RESULTS.md`` of an adaptation recipe and its picture: what was learnt against what was lost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .document import write_document
from .markdown import percent, rate, signed, table
from .switching import switching_section

Row = Mapping[str, Any]


def write_results(
    folder: Path,
    *,
    title: str,
    notice: str,
    command: str,
    scores: Mapping[str, Any],
    source: Mapping[str, str],
    target: str,
    labels: Mapping[str, tuple[str, str]],
    seeds: int,
    tolerance: float,
    stage_seconds: Mapping[str, float],
) -> list[Path]:
    """Writes ``RESULTS.md`` and ``trade_off.png`` and returns their paths.

    Args:
        folder: where they go.
        title: heading.
        notice: what every reader of the figures must know.
        command: what made them.
        scores: what the scoring stage wrote.
        source: title of every source set, by name.
        target: title of the new domain.
        labels: how each method is shown, and the symbol of the parameter that it sweeps.
        seeds: number of runs of every setting.
        tolerance: target error rate above the reference's that a chosen setting may have, as a share.
        stage_seconds: wall-clock seconds of every stage.
    """
    picture = folder / "trade_off.png"
    draw_trade_off(picture, scores, labels, target, notice)
    rows = [row for row in scores["settings"] if row["chosen"]]
    reference = labels[scores["reference"]][0]
    spoken = f"means over {seeds} seeds" if seeds > 1 else "one seed"
    parts = [
        "## What is learnt and what is lost",
        "<!-- --8<-- [start:results] -->",
        _main_table(scores, rows, labels, target, reference),
        "<!-- --8<-- [end:results] -->",
        (
            f"Error rates on test sets in per cent, {spoken}: of words, Han characters and kana counted one by one "
            "(the mixed error rate; without the latter the word error rate). *Old domains*: "
            f"{', '.join(source.values())}, all counted alike. *Forgetting*: points above the base. *Backward gain*: "
            f"share of the old-domain error rate of {reference} that is avoided; *forgetting avoided*: as a share of "
            f"that of {reference}. *Drop*: new-domain error rate above that of {reference}, as a share; *gain kept*: "
            f"improvement over the base, as a share of that of {reference}. *Scaled*: base + c (fine-tuned - base), "
            "as Speech-FT does (arXiv 2502.12672). In brackets: 95 % bootstrap intervals over utterances, the same "
            "ones for all systems; they do not contain the differences between seeds, which a table below shows. "
            "Where a method has a parameter, the row is the setting that forgets least on the development sets among "
            f"those whose new-domain error rate there is at most {100 * tolerance:.0f} % (relative) above "
            f"{reference}'s; without such a setting, the one that learns the new domain best."
        ),
        f"![New-domain error rate against old-domain error rate]({picture.name})",
        *switching_section(scores, [("base", scores["base"]), *((_label(row, labels), row) for row in rows)], target),
        "## Lost at the same gain",
        "<!-- --8<-- [start:levels] -->",
        _level_table(scores, labels),
        "<!-- --8<-- [end:levels] -->",
        (
            "Old-domain error rate (macro) where the new-domain error rate is that of the column: on a straight line "
            "between the two nearest settings of the method, where the fine-tuning that a method holds back or scales "
            "counts as one of its settings. Mean over the seeds, and least and largest."
        ),
        "## Every setting",
        _full_table(scores, labels),
        (
            "*Min, max*: over the seeds. *Moved*: Frobenius norm of the change of all matrices and convolutions, as a "
            "share of the base's. *Small*: share of the entries of changed tensors that changed by less than 0.001; "
            "*A, B*: share of the entries of the adapter's factors (posterior means) below 0.001."
        ),
        "## Every set",
        _set_table(scores, labels, {**source, **{_target_name(scores, source): target}}),
    ]
    results = write_document(folder / "RESULTS.md", title, notice, command, parts, stage_seconds)
    return [results, picture]


def draw_trade_off(
    path: Path, scores: Mapping[str, Any], labels: Mapping[str, tuple[str, str]], target: str, notice: str
) -> None:
    """New-domain against old-domain error rate: one line per method, seeds as small marks; best is the lower left.

    A line begins at what its method starts from: plain LoRA, or the model that is scaled.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9.5, 5.6), layout="constrained")
    everything: Sequence[Row] = scores["settings"]
    methods = list(dict.fromkeys(row["method"] for row in everything))
    colours = pyplot.colormaps["tab10" if len(methods) <= 10 else "tab20"]
    for index, method in enumerate(methods):
        rows = [row for row in everything if row["method"] == method]
        colour, mark = colours(index % colours.N), "osD^vPX<>*"[index % 10]
        points = [_place(row) for row in rows]
        label, symbol = labels[method]
        start = [_place(row) for row in everything if row["name"] == rows[0]["origin"]]
        axes.plot(*zip(*start, *points, strict=True), color=colour, lw=1.2, zorder=2)
        axes.plot(*zip(*points, strict=True), color=colour, marker=mark, ms=6, lw=0, label=label, zorder=3)
        seeds = [(100 * new, 100 * old) for row in rows for old, new in row["seeds"]]
        axes.plot(*zip(*seeds, strict=True), color=colour, marker=mark, ms=2.5, lw=0, alpha=0.45, zorder=2)
        for row, point in zip(rows, points, strict=True):
            if row["value"] is not None:
                text = f"{symbol}={row['value']:g}"
                place = (4, 4 if index % 2 else -9)  # two methods may be in the same place
                axes.annotate(text, point, xytext=place, textcoords="offset points", fontsize=6, color=colour)
    new, old = _place(scores["base"])
    axes.axhline(old, color="#9aa0a6", lw=1, ls="--", zorder=1)
    axes.plot([new], [old], color="black", marker="*", ms=11, lw=0, label="base", zorder=4)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.set_xlabel(f"new domain ({target}): mixed error rate, %, logarithmic")
    axes.set_ylabel("old domains: mean mixed error rate, %")
    axes.set_title(notice, fontsize=8, color="#555")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _place(row: Row) -> tuple[float, float]:
    """Where a system is in the picture: new-domain and old-domain error rate in per cent."""
    return 100 * row["target"][0], 100 * row["source"][0]


def _main_table(
    scores: Mapping[str, Any], rows: Sequence[Row], labels: Mapping[str, tuple[str, str]], target: str, reference: str
) -> str:
    header = [
        "method",
        f"new domain: {target}",
        "old domains",
        "forgetting",
        f"backward gain over {reference}, %",
        "forgetting avoided, %",
        f"new-domain drop against {reference}, %",
        "gain kept, %",
    ]
    base = scores["base"]
    cells = [["base", *(rate(base[key]) for key in ("target", "source")), "", "", "", "", ""]]
    for row in rows:
        rates = [rate(row[key]) for key in ("target", "source")]
        keys = ("forgetting", "backward_gain", "recovered", "new_domain_drop", "gain_kept")
        measures = [signed(row[key]) for key in keys]
        if row["name"] == scores["reference"]:
            measures[1:] = [""] * (len(keys) - 1)
        cells.append([_label(row, labels), *rates, *measures])
    return table(header, cells)


def _level_table(scores: Mapping[str, Any], labels: Mapping[str, tuple[str, str]]) -> str:
    header = ["method", *(f"old domains, new at {percent(level)}" for level in scores["levels"])]
    rows = [
        [labels[name][0], *(rate(value) if value else "" for value in values)]
        for name, values in scores["at_level"].items()
        if any(values)
    ]
    return table(header, rows)


def _full_table(scores: Mapping[str, Any], labels: Mapping[str, tuple[str, str]]) -> str:
    rates = ["new, dev", "new, test", "min, max", "old, dev", "old, test", "min, max"]
    header = ["setting", *rates, "moved", "small", "A, B"]
    cells = []
    for row in scores["settings"]:
        old, new = ([100 * seed[index] for seed in row["seeds"]] for index in (0, 1))
        label = _label(row, labels)
        cells.append(
            [
                f"**{label}**" if row["chosen"] else label,
                f"{100 * row['dev'][1]:.1f}",
                f"{100 * row['target'][0]:.1f}",
                f"{min(new):.1f}, {max(new):.1f}",
                f"{100 * row['dev'][0]:.1f}",
                f"{100 * row['source'][0]:.1f}",
                f"{min(old):.1f}, {max(old):.1f}",
                f"{row['change']['relative']:.3f}",
                percent(row["change"]["small"]),
                percent(row["change"].get("small_factors", math.nan)),
            ]
        )
    return table(header, cells)


def _set_table(scores: Mapping[str, Any], labels: Mapping[str, tuple[str, str]], sets: Mapping[str, str]) -> str:
    def rates(row: Row) -> list[str]:
        counts = [row["sets"][name] for name in sets]
        wrong = [c["substitutions"] + c["deletions"] + c["insertions"] for c in counts]
        pooled = f"{100 * row['source_micro'][0]:.1f}"
        return [*(f"{100 * n / c['reference_length']:.1f}" for n, c in zip(wrong, counts, strict=True)), pooled]

    rows = [[_label(row, labels), *rates(row)] for row in scores["settings"]]
    header = ["setting", *sets.values(), "old domains, words alike"]
    return table(header, [["base", *rates(scores["base"])], *rows])


def _target_name(scores: Mapping[str, Any], source: Mapping[str, str]) -> str:
    return next(name for name in scores["base"]["sets"] if name not in source)


def _label(row: Row, labels: Mapping[str, tuple[str, str]]) -> str:
    label, symbol = labels[row["method"]]
    return label if row["value"] is None else f"{label}, {symbol}={row['value']:g}"
