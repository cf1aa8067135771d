"""``RESULTS.md`` of a study of domains and its pictures: what merging gives in domain, and what it keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..scoring import Interval
from .document import write_document
from .findings import FAMILIES, findings
from .markdown import p_value, percent, rate, signed, table
from .results import draw_bars

Row = Mapping[str, Any]
_COLOURS = {"parameter space": "#2a6fbb", "task vectors": "#e0912f", "task subspace": "#2b8a57"}
_NEAR = (0.9, 0.035)  # points across and logarithm of the rate up, within which labels overlap
_OTHERS = ("base", "experts", "joint")
_LABELS = {"experts": "experts at home", "joint": "joint fine-tuning"}


def write_results(
    folder: Path,
    *,
    title: str,
    notice: str,
    command: str,
    scores: Mapping[str, Any],
    search: Sequence[Row],
    chosen: Mapping[str, str],
    titles: Mapping[str, str],
    stage_seconds: Mapping[str, float],
) -> list[Path]:
    """Writes ``RESULTS.md``, ``wer.png`` and ``trade_off.png`` and returns their paths.

    Args:
        folder: where they go.
        title: heading.
        notice: what every reader of the figures must know.
        command: what made them.
        scores: what the scoring stage wrote.
        search: what every candidate scored on the development sets.
        chosen: the settings that every merge runs with, in words; empty for those without a search.
        titles: of the test sets, by name.
        stage_seconds: wall-clock seconds of every stage.
    """
    bars, trade_off = folder / "wer.png", folder / "trade_off.png"
    _draw_means(bars, scores, notice)
    _draw_trade_off(trade_off, scores, notice)
    baseline = _label(scores["baseline"])
    seeds = len(scores["seeds"])
    found = findings(scores)
    kept = [name for name in scores["groups"] if name not in ("in domain", "out of domain")]
    parts = [
        "## Word error rate, %",
        "<!-- --8<-- [start:results] -->",
        _main_table(scores, kept),
        "<!-- --8<-- [end:results] -->",
        (
            f"{f'Means over {seeds} seeds' if seeds > 1 else 'One seed'} of the fine-tunings (one base). In brackets: "
            "95 % bootstrap intervals over "
            "utterances, the same ones for all seeds and systems; *seeds*: least and largest. Means count the sets "
            f"alike: *in domain* {len(scores['groups']['in domain'])} sets, "
            f"*all sets* with the {len(scores['groups'].get('out of domain', []))} sets out of domain; *by area* "
            f"counts the areas alike ({_areas(scores)}). *Against {baseline}* is the difference over all sets, with "
            "the same utterances drawn for both; *p* is that of MAPSSWE over the words of these sets (two-tailed, "
            "corrected by Holm's method for the number of merges; the largest over the seeds). Settings of merges were "
            "chosen on development sets with the experts of one seed and used for all; nothing was chosen on test "
            "sets. *Experts at home*: every expert on its own domain; *of the experts' gain*: mean over the domains of "
            "(base - system) / (base - expert at home)."
        ),
        f"![Mean word error rate in domain by system]({bars.name})",
        "## Findings",
        "<!-- --8<-- [start:findings] -->",
        table(["finding", "here", "figures"], found) if found else "None: no system recognises anything.",
        "<!-- --8<-- [end:findings] -->",
        f"![In domain against what the base knew]({trade_off.name})",
        f"## The best merge against {baseline}, set by set",
        _set_by_set(scores, titles),
        (
            f"The best merge is the one with the lowest error rate on the development sets, {_label(scores['best'])}. "
            "*p*: MAPSSWE, corrected for the number of sets, the largest over the seeds."
        ),
        "## Settings",
        "<!-- --8<-- [start:settings] -->",
        _settings_table(search, chosen),
        "<!-- --8<-- [end:settings] -->",
        "Error rates on the development utterances of the search, one seed; *range* over all settings that were tried.",
        "## Every system on every set",
        _full_table(scores, titles),
        "## Every setting that was tried",
        _search_table(search),
    ]
    results = write_document(folder / "RESULTS.md", title, notice, command, parts, stage_seconds)
    return [results, bars, trade_off]


def in_order(scores: Mapping[str, Any]) -> list[str]:
    """All systems: base, experts, joint fine-tuning, then the merges by family, the best in domain first."""
    systems = scores["systems"]
    merges = [name for name, row in systems.items() if row["family"]]
    rank = {family: index for index, family in enumerate(FAMILIES)}
    merges.sort(key=lambda name: (rank.get(systems[name]["family"], len(rank)), _value(systems[name], "in domain")))
    return [*(name for name in _OTHERS if name in systems), *merges]


def _main_table(scores: Mapping[str, Any], kept: Sequence[str]) -> str:
    outside = ["out of domain"] if "out of domain" in scores["groups"] else []
    header = [
        "system",
        "family",
        "in domain",
        "seeds",
        "of the experts' gain",
        *outside,
        "all sets",
        "by area",
        f"against {_label(scores['baseline'])}",
        "p",
        *kept,
    ]
    rows = []
    for name in in_order(scores):
        row = scores["systems"][name]
        against = row.get("against", {}).get("full")
        test = scores["significance"]["full"].get(name)
        rows.append(
            [
                f"**{_label(name)}**" if name == scores["best"] else _label(name),
                row["family"] or "",
                _shown(row, "in domain"),
                _spread(row, "in domain"),
                percent(row["recovered"]) if row.get("recovered") else "",
                *(_number(row, item) for item in outside),
                _shown(row, "full"),
                f"{100 * row['by area']:.1f}" if "by area" in row else "",
                signed(against) if against else "",
                p_value(test["p_holm"]) if test else "",
                *(_number(row, item) for item in kept),
            ]
        )
    return table(header, rows)


def _set_by_set(scores: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    best, baseline, systems = scores["best"], scores["baseline"], scores["systems"]
    names = [*scores["groups"]["in domain"], *scores["groups"].get("out of domain", [])]
    header = ["set", "base", "expert at home", _label(baseline), _label(best), "p"]
    p_values = scores.get("by set", {})
    rows = [
        [
            titles[name],
            *(_set_rate(systems[system], name) for system in ("base", "experts")),
            *(_set_interval(systems[system], name) for system in (baseline, best)),
            p_value(p_values[name]) if name in p_values else "",
        ]
        for name in names
    ]
    return table(header, rows)


def _settings_table(search: Sequence[Row], chosen: Mapping[str, str]) -> str:
    rows = []
    for entry, words in chosen.items():
        own = [row for row in search if row["entry"] == entry]
        best = min(own, key=lambda row: row["dev"])
        spread = " to ".join(dict.fromkeys(f"{100 * pick(row['dev'] for row in own):.1f}" for pick in (min, max)))
        rows.append([entry, words, str(len(own)), spread, _percent(best["retention"])])
    return table(["merge", "chosen", "tried", "in domain, range", "what the base knew"], rows)


def _search_table(search: Sequence[Row]) -> str:
    rows = [[row["entry"], row["words"], _percent(row["dev"]), _percent(row["retention"])] for row in search]
    return table(["merge", "settings", "in domain", "what the base knew"], rows)


def _full_table(scores: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    names = [name for sets in scores["groups"].values() for name in sets]
    rows = [
        [_label(system), *(_set_rate(scores["systems"][system], name) for name in names)] for system in in_order(scores)
    ]
    return table(["system", *(titles[name] for name in names)], rows)


def _draw_means(path: Path, scores: Mapping[str, Any], notice: str) -> None:
    systems = scores["systems"]
    merges = [name for name, row in systems.items() if row["family"]]
    lines = {
        "base": (_value(systems["base"], "in domain"), "#9aa0a6", "-"),
        "experts at home": (_value(systems["experts"], "in domain"), "#c5221f", ":"),
    }
    if "joint" in systems:
        lines["joint fine-tuning"] = (_value(systems["joint"], "in domain"), "#444", "--")
    draw_bars(
        path,
        {name: Interval(*systems[name]["means"]["in domain"]["interval"]) for name in merges},
        lines,
        f"mean word error rate over {len(scores['groups']['in domain'])} domains, %",
        notice,
        {name: (systems[name]["family"], _COLOURS.get(systems[name]["family"], "#777")) for name in merges},
    )


def _draw_trade_off(path: Path, scores: Mapping[str, Any], notice: str) -> None:
    """In domain against what the base knew, without which against all sets; best is the lower left.

    Joint fine-tuning, which may be far from the merges, has a panel of its own with the same upright axis.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    other = "retention" if "retention" in scores["systems"]["base"]["means"] else "full"
    known = "what the base knew" if other == "retention" else "all sets"
    joint = "joint" in scores["systems"]
    figure, panels = pyplot.subplots(
        1,
        1 + joint,
        figsize=(9.5, 6.2),
        layout="constrained",
        sharey=True,
        squeeze=False,
        width_ratios=[1, 5][-1 - joint :],
    )
    left, right = panels[0][0], panels[0][-1]
    labelled: set[str] = set()
    places: dict[str, tuple[float, float]] = {}
    for name in (name for name in in_order(scores) if name != "experts"):
        row = scores["systems"][name]
        family = row["family"] or _label(name)
        axes = left if name == "joint" else right
        style = {"color": _COLOURS.get(family, "black"), "lw": 0}
        marker, size = {"base": ("*", 13), "joint": ("D", 8)}.get(name, ("o", 6))
        place = 100 * _value(row, "in domain"), 100 * _value(row, other)
        label = None if family in labelled or name == "joint" else family
        labelled.add(family)
        axes.plot(*place, marker=marker, ms=size, label=label, zorder=3, **style)
        if len(scores["seeds"]) > 1:
            seeds = [[100 * value for value in row["means"][item]["seeds"]] for item in ("in domain", other)]
            axes.plot(*seeds, marker=marker, ms=2.5, alpha=0.4, zorder=2, **style)
        if name == "joint":
            axes.set_xlim(place[0] - 1.5, place[0] + 1.5)
            axes.annotate(_label(name), place, xytext=(0, 9), textcoords="offset points", fontsize=7, ha="center")
        else:
            places[name] = place
    for names, place in _together(places):
        first, more = _label(names[0]), f" and {len(names) - 1} more" if len(names) > 1 else ""
        right.annotate(first + more, place, xytext=(6, 3), textcoords="offset points", fontsize=7, color="#333")
    right.set_xlabel("in domain: mean word error rate, %")
    left.set_ylabel(f"{known}: mean word error rate, %, logarithmic")
    left.set_yscale("log")
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:g}")
    figure.suptitle(notice, fontsize=8, color="#555")
    for axes in panels[0]:
        axes.spines[["top", "right"]].set_visible(False)
    right.margins(x=0.08)
    right.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=95)
    pyplot.close(figure)


def _together(places: Mapping[str, tuple[float, float]]) -> list[tuple[list[str], tuple[float, float]]]:
    """Systems whose labels would overlap, and where the first of them is."""
    groups: list[tuple[list[str], tuple[float, float]]] = []
    for name, (x, y) in places.items():
        for names, (left, low) in groups:
            if abs(x - left) < _NEAR[0] and abs(math.log(y / low)) < _NEAR[1]:
                names.append(name)
                break
        else:
            groups.append(([name], (x, y)))
    return groups


def _label(name: str) -> str:
    return _LABELS.get(name, name)


def _areas(scores: Mapping[str, Any]) -> str:
    return ", ".join(dict.fromkeys(scores["areas"].values()))


def _value(row: Row, mean: str) -> float:
    return float(row["means"][mean]["interval"][0])


def _number(row: Row, mean: str) -> str:
    return f"{100 * _value(row, mean):.1f}" if mean in row["means"] else ""


def _shown(row: Row, mean: str) -> str:
    return rate(row["means"][mean]["interval"]) if mean in row["means"] else ""


def _spread(row: Row, mean: str) -> str:
    seeds = [100 * value for value in row["means"][mean]["seeds"]]
    return f"{min(seeds):.1f}, {max(seeds):.1f}" if len(seeds) > 1 else ""


def _set_rate(row: Row, name: str) -> str:
    return f"{100 * row['sets'][name]['interval'][0]:.1f}" if name in row["sets"] else ""


def _set_interval(row: Row, name: str) -> str:
    return rate(row["sets"][name]["interval"])


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
