"""``RESULTS.md`` of a language recipe and its pictures: what a new language gained and what the old ones lost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .document import write_document
from .markdown import rate, table

KINDS = {"merged": "merged", "extended": "extended", "again": "merged again"}
"""Models of every method: of the old experts; with the new expert added to it; of all experts at once."""
JOINT = "joint"
METRICS = {"cer": "character", "wer": "word"}


def write_results(
    folder: Path,
    *,
    title: str,
    notice: str,
    command: str,
    scores: Mapping[str, Any],
    old: Mapping[str, str],
    new: tuple[str, str],
    untouched: Mapping[str, str],
    tolerance: float,
    stage_seconds: Mapping[str, float],
) -> list[Path]:
    """Writes ``RESULTS.md``, ``languages.png`` and ``trade_off.png`` and returns their paths.

    Args:
        folder: where they go.
        title: heading.
        notice: what every reader of the figures must know, if anything.
        command: what made them.
        scores: what the scoring stage wrote.
        old: title of every language of the merged model, by name.
        new: name and title of the language that was added.
        untouched: titles of languages without an expert.
        tolerance: share of the old languages' error rate that the search on development sets allowed to lose.
        stage_seconds: wall-clock seconds of every stage.
    """
    pictures = [folder / "languages.png", folder / "trade_off.png"]
    titles = {**old, new[0]: new[1], **untouched}
    draw_languages(pictures[0], scores, titles, [*old, new[0]])
    draw_trade_off(pictures[1], scores, list(old), new, tolerance)
    seen = scores["training_data"]
    joint = (
        "*Joint*: the base trained on the data of all these languages together; what it loses is counted from the "
        "languages' own experts. "
        if JOINT in scores["rates"]["cer"]
        else ""
    )
    parts = [
        f"## {new[1]} is added to {', '.join(old.values())}",
        "<!-- --8<-- [start:results] -->",
        *(_main_table(scores, metric, old, new) for metric in METRICS),
        "<!-- --8<-- [end:results] -->",
        (
            f"First character, then word error rates on test sets in per cent, with 95 % bootstrap intervals over "
            f"utterances. *Gain*: share of what the {new[1]} expert gains over the base that the model has, (base - "
            "model) / (base - expert). *Old*: unweighted mean over "
            f"{', '.join(old.values())}; *lost*: by how much it rose from the merged model to the extended one, as a "
            "share. *Merged again*: all experts merged at once, with a scale of its own. *G*: normalised performance, "
            f"the mean of the gain over the old languages and the new one. {joint}"
            "Scales and weights were chosen by character error rates of the development sets: the merged "
            "model's by the mean over its languages; the extension's by the new language, among those that lose at "
            f"most {100 * tolerance:.0f} % of the old ones there, or the one that loses least where there is none."
        ),
        _data_sentence(seen, titles),
        f"![Error rate by language and model]({pictures[0].name})",
        "## Every language",
        *(_language_table(scores, metric, titles) for metric in METRICS),
        (
            "Character, then word error rates. *Expert*: each language's own. The last columns are languages that "
            "nobody was trained for."
            if untouched
            else "Character, then word error rates."
        ),
        "## What was tried",
        _search_table(scores, list(old), new),
        (
            "Character error rates on development sets; what was chosen is in bold. *Weight*: of the new expert, where "
            "the earlier ones have 1; *kept*: factor on the scale of the merged model."
        ),
        f"![Development sets: the new language against the old ones]({pictures[1].name})",
    ]
    results = write_document(folder / "RESULTS.md", title, notice, command, parts, stage_seconds)
    return [results, *pictures]


def draw_languages(path: Path, scores: Mapping[str, Any], titles: Mapping[str, str], trained: Sequence[str]) -> None:
    """Bars of the character error rate by language for the first method's models, beside base, experts and joint."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rates = scores["rates"]["cer"]
    method = next(iter(scores["chosen"]["merged"]))
    shown = {
        "base": ("base", "#9aa0a6"),
        "expert": ("expert of the language", "#c5221f"),
        **{
            f"{kind}-{method}": (f"{method}: {label}", colour)
            for (kind, label), colour in zip(KINDS.items(), ("#a8d5ba", "#1e8e3e", "#2a788e"), strict=True)
        },
        **({JOINT: ("joint training", "#fbbc04")} if JOINT in rates else {}),
    }
    figure, axes = pyplot.subplots(figsize=(9.5, 4.4), layout="constrained")
    width = 0.84 / len(shown)
    for index, (model, (label, colour)) in enumerate(shown.items()):
        names = trained if model == "expert" else list(titles)
        values = [rates[name if model == "expert" else model][name]["interval"] for name in names]
        at = [list(titles).index(name) + (index - (len(shown) - 1) / 2) * width for name in names]
        heights = [100 * value for value, _, _ in values]
        spread = [[100 * (v - low) for v, low, _ in values], [100 * (high - v) for v, _, high in values]]
        bars = axes.bar(at, heights, width * 0.92, yerr=spread, color=colour, label=label, error_kw={"lw": 0.7})
        axes.bar_label(bars, [f"{height:.0f}" for height in heights], fontsize=6, padding=2)
    axes.set_xticks(range(len(titles)), list(titles.values()))
    axes.set_ylabel("character error rate, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper left")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.15)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def draw_trade_off(
    path: Path, scores: Mapping[str, Any], old: Sequence[str], new: tuple[str, str], tolerance: float
) -> None:
    """Every extension that was tried: error rate of the new language against the relative loss of the old ones."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9.5, 4.6), layout="constrained")
    for index, (method, found) in enumerate(scores["chosen"]["extended"].items()):
        before = _mean(scores["chosen"]["merged"][method]["dev"], old)
        colour, mark = pyplot.colormaps["tab10"](index), "osD^vPX<>*"[index % 10]
        places = [(100 * t["dev"][new[0]], 100 * (_mean(t["dev"], old) / before - 1)) for t in found["tried"]]
        axes.plot(*zip(*sorted(places), strict=True), color=colour, marker=mark, ms=5, lw=0.8, label=method)
        taken = places[[t["values"] for t in found["tried"]].index(found["values"])]
        axes.plot(*taken, color=colour, marker=mark, ms=11, lw=0, markerfacecolor="none", markeredgewidth=1.6)
    axes.axhline(100 * tolerance, color="#9aa0a6", lw=1, ls="--", label="tolerance")
    axes.axhline(0, color="#ddd", lw=1, zorder=0)
    axes.set_xlabel(f"{new[1]}: character error rate on the development set, %")
    axes.set_ylabel("old languages: change, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _main_table(scores: Mapping[str, Any], metric: str, old: Mapping[str, str], new: tuple[str, str]) -> str:
    name, title = new
    rates = scores["rates"][metric]
    by_language = [f"{shown}, %" for shown in old.values()]
    header = [f"{METRICS[metric]} error rate", title, "gain, %", "old", "lost, %", *by_language, "untouched, %", "G"]

    def row(label: str, model: str, measures: Mapping[str, Any]) -> list[str]:
        mean = sum(rates[model][item]["interval"][0] for item in old) / len(old)
        lost = measures.get("lost") or {}
        return [
            label,
            rate(rates[model][name]["interval"]),
            _share(measures.get("gain")),
            f"{100 * mean:.1f}",
            _signed(measures.get("loss")),
            *(_signed(lost.get(item)) for item in old),
            _signed(measures.get("moved")),
            "" if "G" not in measures or math.isnan(measures["G"]) else f"{measures['G']:.2f}",
        ]

    rows = [row("base", "base", {}), row(f"expert: {title}", name, {})]
    for method, measures in scores["methods"][metric].items():
        for kind, label in KINDS.items() if method != JOINT else {JOINT: ""}.items():
            model = method if method == JOINT else f"{kind}-{method}"
            rows.append(row("joint training" if method == JOINT else f"{method}, {label}", model, measures[kind]))
    return table(header, rows)


def _language_table(scores: Mapping[str, Any], metric: str, titles: Mapping[str, str]) -> str:
    rows = []
    for model, rates in scores["rates"][metric].items():
        label = f"expert: {titles[model]}" if model in titles else model
        rows.append([label, *(rate(rates[name]["interval"]) for name in titles)])
    return table([f"{METRICS[metric]} error rate", *titles.values()], rows)


def _search_table(scores: Mapping[str, Any], old: Sequence[str], new: tuple[str, str]) -> str:
    rows = []
    for kind, label in KINDS.items():
        for method, found in scores["chosen"][kind].items():
            for tried in found["tried"]:
                values = ", ".join(f"{key} {value:g}" for key, value in tried["values"].items())
                values = f"**{values}**" if tried["values"] == found["values"] else values
                there = f"{100 * tried['dev'][new[0]]:.1f}" if new[0] in tried["dev"] else ""
                rows.append([f"{method}, {label}", values, f"{100 * _mean(tried['dev'], old):.1f}", there])
    return table(["model", "tried", "old, dev", f"{new[1]}, dev"], rows)


def _data_sentence(seen: Sequence[str], titles: Mapping[str, str]) -> str:
    if seen:
        names = ", ".join(titles[name] for name in seen)
        return f"When the language was added, training data of {names} were on the disk; stage 5 does not read them."
    return "When the language was added, no training data were there: they had been taken away after stage 4."


def _mean(rates: Mapping[str, float], names: Sequence[str]) -> float:
    return sum(rates[name] for name in names) / len(names)


def _signed(value: Sequence[float] | None) -> str:
    """A change in per cent with its interval; a dash where it is not defined."""
    return _shown(value, "{:+.0f} [{:+.0f}, {:+.0f}]")


def _share(value: Sequence[float] | None) -> str:
    return _shown(value, "{:.0f} [{:.0f}, {:.0f}]")


def _shown(value: Sequence[float] | None, form: str) -> str:
    if value is None:
        return ""
    return "-" if math.isnan(value[0]) else form.format(*(100 * item for item in value))
