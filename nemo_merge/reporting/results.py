"""``RESULTS.md`` of a recipe and its picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..scoring import Interval
from .document import write_document
from .markdown import p_value, rate, signed, table

_MERGES_BY_DOMAIN = 8  # with more of them, bars by domain cannot be told apart


@dataclass(frozen=True)
class Scores:
    """What the scoring stage found.

    Attributes:
        sets: error counts and ``interval`` by model and test set.
        means: mean error rate over the domains by model.
        against: difference of that mean to the baseline's by merge.
        significance: p values of MAPSSWE over the domains against the baseline, corrected for the number of merges.
    """

    sets: Mapping[str, Mapping[str, Mapping[str, Any]]]
    means: Mapping[str, Interval]
    against: Mapping[str, Interval]
    significance: Mapping[str, float]

    @classmethod
    def read(cls, path: Path) -> Scores:
        """Reads ``scores.json``."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            content["sets"],
            {name: Interval(*values) for name, values in content["means"].items()},
            {name: Interval(*values) for name, values in content["against"].items()},
            {name: test["p_holm"] for name, test in content["significance"].items()},
        )

    def interval(self, model: str, name: str) -> Interval:
        """Error rate of a model on a test set."""
        return Interval(*self.sets[model][name]["interval"])

    def mean(self, model: str, names: Sequence[str]) -> float:
        """Unweighted mean over test sets."""
        return sum(self.interval(model, name).value for name in names) / len(names)


def write_results(
    folder: Path,
    *,
    title: str,
    notice: str,
    command: str,
    scores: Scores,
    domains: Mapping[str, str],
    others: Mapping[str, Mapping[str, str]],
    merges: Mapping[str, Mapping[str, Any]],
    baseline: str,
    merge_seconds: Mapping[str, float],
    stage_seconds: Mapping[str, float],
    models: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes ``RESULTS.md`` and ``wer.png`` and returns their paths.

    Args:
        folder: where they go.
        title: heading.
        notice: what every reader of the figures must know.
        command: what made them.
        scores: error rates.
        domains: title of every domain that has an expert, by name.
        others: titles of the other test sets by name, by what they are; each group is a column.
        merges: parameters of every merge, by name.
        baseline: merge that the others are compared with.
        merge_seconds: CPU seconds of every merge.
        stage_seconds: wall-clock seconds of every stage.
        models: SHA-256 of the file of every model, by name.
    """
    picture = folder / "wer.png"
    draw_error_rates(picture, scores, domains, list(merges), notice)
    parts = [
        "## Word error rate, %",
        "<!-- --8<-- [start:results] -->",
        _main_table(scores, domains, others, merges, merge_seconds),
        "<!-- --8<-- [end:results] -->",
        (
            "Intervals are 95 % bootstrap intervals over utterances. *Mean* is the unweighted mean over the domains "
            f"that have an expert; *against {baseline}* is the difference of that mean, with the same utterances drawn "
            "for both, and *p* is that of MAPSSWE over the words of these domains (two-tailed, corrected by Holm's "
            "method for the number of merges). The columns after it are means over sets that no expert was trained on: "
            + "; ".join(f"*{group}*: {', '.join(titles.values())}" for group, titles in others.items())
            + ". Methods run with their defaults where no parameter is shown; nothing was tuned on these sets."
        ),
        f"![Word error rate by domain and method]({picture.name})",
        "## Every model on every set",
        _full_table(scores),
        *(["## Models", _files_table(models)] if models else []),
    ]
    results = write_document(folder / "RESULTS.md", title, notice, command, parts, stage_seconds)
    return [results, picture]


def _files_table(models: Mapping[str, str]) -> str:
    return table(["model", "SHA-256"], [[name, f"`{digest}`"] for name, digest in models.items()])


def draw_error_rates(
    path: Path, scores: Scores, domains: Mapping[str, str], merges: Sequence[str], notice: str
) -> None:
    """Bars of the error rate by domain and model with their intervals; the expert at home is a line.

    With many merges, the mean over the domains by model, best first.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if len(merges) > _MERGES_BY_DOMAIN:
        _draw_means(path, scores, domains, merges, notice)
        return
    models = ["base", *merges]
    groups = [*domains, "mean"]
    colours = ["#9aa0a6", *(pyplot.colormaps["viridis"](index / len(merges)) for index in range(len(merges)))]
    figure, axes = pyplot.subplots(figsize=(9.5, 4.6), layout="constrained")
    width = 0.84 / len(models)
    for index, (model, colour) in enumerate(zip(models, colours, strict=True)):
        values = [scores.interval(model, name) for name in domains] + [scores.means[model]]
        at = [group + (index - (len(models) - 1) / 2) * width for group in range(len(groups))]
        heights = [100 * value.value for value in values]
        spread = [
            [100 * (value.value - value.low) for value in values],
            [100 * (value.high - value.value) for value in values],
        ]
        bars = axes.bar(
            at, heights, width * 0.92, yerr=spread, color=colour, label=model, error_kw={"lw": 0.8, "ecolor": "#444"}
        )
        axes.bar_label(bars, [f"{height:.0f}" for height in heights], fontsize=7, padding=2)
    at_home = [scores.interval(name, name).value for name in domains]
    for group, value in enumerate([*at_home, sum(at_home) / len(at_home)]):
        label = "expert of that domain" if group == 0 else ""
        axes.hlines(100 * value, group - 0.44, group + 0.44, color="#c5221f", linestyle="--", lw=1.4, label=label)
    axes.set_xticks(range(len(groups)), [*domains.values(), "mean"])
    axes.set_ylabel("word error rate, %")
    axes.set_title(notice, fontsize=8, color="#555")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="upper left")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.15)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_means(path: Path, scores: Scores, domains: Mapping[str, str], merges: Sequence[str], notice: str) -> None:
    home = sum(scores.interval(name, name).value for name in domains) / len(domains)
    draw_bars(
        path,
        {name: scores.means[name] for name in merges},
        {
            "base": (scores.means["base"].value, "#9aa0a6", "-"),
            "expert of each domain": (home, "#c5221f", "--"),
        },
        f"mean word error rate over {', '.join(domains.values())}, %",
        notice,
    )


def draw_bars(
    path: Path,
    values: Mapping[str, Interval],
    lines: Mapping[str, tuple[float, str, str]],
    label: str,
    notice: str,
    groups: Mapping[str, tuple[str, str]] | None = None,
) -> None:
    """A bar per system with its interval, the best at the bottom, and lines to compare with.

    Args:
        path: picture to write.
        values: error rates, fractions.
        lines: value, colour and style of every line, by its label.
        label: of the axis.
        notice: above the bars.
        groups: name and colour of the group that a system belongs to; one colour for all by default.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    order = sorted(values, key=lambda name: -values[name].value)
    figure, axes = pyplot.subplots(figsize=(9.5, 0.6 + 0.27 * len(order)), layout="constrained")
    widths = [100 * values[name].value for name in order]
    spread = [
        [100 * (values[name].value - values[name].low) for name in order],
        [100 * (values[name].high - values[name].value) for name in order],
    ]
    colours = [groups[name][1] if groups else "#2a788e" for name in order]
    bars = axes.barh(order, widths, 0.75, xerr=spread, color=colours, error_kw={"lw": 0.8, "ecolor": "#444"})
    axes.bar_label(bars, [f"{width:.1f}" for width in widths], fontsize=7, padding=2)
    for name, (value, colour, style) in lines.items():
        axes.axvline(100 * value, color=colour, linestyle=style, lw=1.4, label=name)
    for group, colour in dict(groups[name] for name in order).items() if groups else ():
        axes.barh([order[0]], [0], color=colour, label=group)
    axes.set_xlabel(label)
    axes.set_title(notice, fontsize=8, color="#555")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", labelsize=8)
    axes.margins(y=0.02)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _main_table(
    scores: Scores,
    domains: Mapping[str, str],
    others: Mapping[str, Mapping[str, str]],
    merges: Mapping[str, Mapping[str, Any]],
    merge_seconds: Mapping[str, float],
) -> str:
    header = [
        "model",
        *domains.values(),
        "mean",
        f"against {_baseline(scores, merges)}",
        "p",
        *others,
        "CPU-s to merge",
    ]
    rows = []
    for model in ("base", *domains, *merges):
        label = f"expert: {domains[model]}" if model in domains else _merge_label(model, merges.get(model, {}))
        cells = [rate(scores.interval(model, name)) for name in domains]
        difference = scores.against.get(model)
        rows.append(
            [
                label,
                *cells,
                f"**{rate(scores.means[model])}**",
                signed(difference) if difference else "",
                p_value(scores.significance[model]) if difference else "",
                *(f"{100 * scores.mean(model, list(titles)):.1f}" for titles in others.values()),
                f"{merge_seconds[model]:.1f}" if model in merge_seconds else "",
            ]
        )
    return table(header, rows)


def _baseline(scores: Scores, merges: Mapping[str, Any]) -> str:
    return next(name for name in merges if name not in scores.against)


def _full_table(scores: Scores) -> str:
    rows = []
    for model, by_set in scores.sets.items():
        for name, counts in by_set.items():
            words = counts["reference_length"]

            def share(count: int, words: int = words) -> str:
                return f"{100 * count / words:.1f}"

            wrong = counts["substitutions"] + counts["deletions"] + counts["insertions"]
            right = words - counts["substitutions"] - counts["deletions"]
            sentences = f"{100 * counts['wrong_utterances'] / counts['utterances']:.1f}"
            edits = [share(counts[key]) for key in ("substitutions", "deletions", "insertions")]
            rows.append(
                [model, name, str(counts["utterances"]), str(words), share(right), *edits, share(wrong), sentences]
            )
    return table(["model", "dataset", "Snt", "Wrd", "Corr", "Sub", "Del", "Ins", "Err", "S.Err"], rows)


def _merge_label(name: str, parameters: Mapping[str, Any]) -> str:
    shown = ", ".join(
        f"{key} {' + '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in parameters.items()
        if key != "method"
    )
    return f"{name} ({shown})" if shown else name
