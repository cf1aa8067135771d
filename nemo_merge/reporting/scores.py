"""Scores as JSON, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..scoring.comparison import Comparison, Kept, SystemMeans
from ..scoring.evaluation import METRICS, Evaluation, Group, Score
from ..scoring.merge_metrics import Means
from .environment import environment
from .markdown import p_value, table

FORMATS = ("markdown", "json", "csv")
_TRANSLATION = ("bleu", "chrf")


@dataclass(frozen=True)
class ScoreReport:
    """Everything that a scoring run found.

    Attributes:
        evaluation: the scores.
        inputs: what was read and how.
        problems: number of problems of the input by kind.
        comparisons: with the baseline, if there is one.
        baseline: its name.
        means: by system.
        kept: by merge, if a base was named.
    """

    evaluation: Evaluation
    inputs: Mapping[str, Any]
    problems: Mapping[str, int]
    comparisons: Sequence[Comparison] = ()
    baseline: str | None = None
    means: Mapping[str, SystemMeans] | None = None
    kept: Mapping[str, Kept] | None = None

    def render(self, format: str) -> str:
        """The report in one of :data:`FORMATS`, with a newline at the end."""
        return {"markdown": as_markdown, "json": as_json, "csv": as_csv}[format](self)


def as_json(report: ScoreReport) -> str:
    """Everything; error rates and differences are fractions."""
    evaluation = report.evaluation
    scores: dict[str, Any] = {}
    for (metric, system, group), score in evaluation.scores.items():
        by_kind = scores.setdefault(system, {}).setdefault(metric, {})
        entry = {key: value for key, value in asdict(score).items() if value is not None} | {"value": score.value}
        if score.interval:
            entry["interval"] = [score.interval.low, score.interval.high]
        _place(by_kind, group, entry)
    content: dict[str, Any] = {
        "inputs": {**report.inputs, "utterances": len(evaluation.rows), "problems": report.problems},
        "environment": environment(),
        "systems": scores,
    }
    for group, found in evaluation.switching.items():
        _place(content.setdefault("code_switching", {}), group, found._asdict())
    if report.comparisons:
        content["significance"] = {
            "baseline": report.baseline,
            "metric": evaluation.options.metrics[0],
            "test": "MAPSSWE, two-tailed; p_holm is corrected by Holm's method",
            "comparisons": [
                {
                    "system": item.system,
                    "group": {"kind": item.group.kind, "name": item.group.name},
                    "difference": item.difference._asdict(),
                    **asdict(item.test),
                    "p_holm": item.p_holm,
                }
                for item in report.comparisons
            ],
        }
    if report.means:
        content["means"] = {
            system: {kind: means._asdict() for kind, means in _kinds(found)} for system, found in report.means.items()
        }
    if report.kept:
        content["kept"] = {
            system: {
                "normalised_performance": asdict(found.performance) if found.performance else None,
                "retention": {name: item._asdict() for name, item in found.retention.items()},
            }
            for system, found in report.kept.items()
        }
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _place(content: dict[str, Any], group: Group, entry: dict[str, Any]) -> None:
    """Puts what belongs to a group under ``all``, or under ``by_set`` (``by_language``, ``by_domain``) and its name."""
    if group.kind == "all":
        content["all"] = entry
    else:
        content.setdefault(f"by_{group.kind}", {})[group.name] = entry


def as_csv(report: ScoreReport) -> str:
    """One row per metric, system and group of utterances; error rates in per cent."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = ["metric", "system", "kind", "group", "value", "low", "high"]
    counted = ["utterances", "reference_length", "substitutions", "deletions", "insertions", "wrong_utterances"]
    writer.writerow([*columns, *counted])
    for (metric, system, group), score in report.evaluation.scores.items():
        scale = 1 if metric in _TRANSLATION else 100
        values = [score.value, *(score.interval[1:] if score.interval else (None, None))]
        shown = ["" if value is None else f"{scale * value:.4f}" for value in values]
        counts = [getattr(score.counts, name) for name in counted] if score.counts else [len(group.rows)] + [""] * 5
        writer.writerow([metric, system, group.kind, group.name, *shown, *counts])
    return out.getvalue()


def as_markdown(report: ScoreReport) -> str:
    """Tables for people; error rates in per cent, in the columns of sclite."""
    evaluation = report.evaluation
    text = report.inputs["text"]
    parts = [f"{_number(len(evaluation.rows), 'utterance')}; text profile {text}."]
    if report.problems:
        parts.append("Input: " + ", ".join(f"{_number(count, kind)}" for kind, count in report.problems.items()) + ".")
    for metric in evaluation.metrics:
        parts += [f"## {_title(metric)}", _main_table(evaluation, metric)]
        for kind in ("set", "language", "domain"):
            if len(groups := evaluation.groups_of(kind)) > 1:
                rows = [
                    [
                        _cell(group.name),
                        *(_shown(evaluation.scores[metric, name, group]) for name in evaluation.systems),
                    ]
                    for group in groups
                ]
                parts.append(table([kind, *map(_cell, evaluation.systems)], rows))
    if evaluation.switching:
        shown = [
            [
                _cell(f"{group.kind} {group.name}".strip()),
                f"{found.code_mixing_index:.1f}",
                str(found.switch_points),
                f"{100 * found.switch_point_fraction:.1f}",
                str(found.mixed_utterances),
            ]
            for group, found in evaluation.switching.items()
        ]
        header = ["references", "code-mixing index", "switch points", "% of tokens", "mixed utterances"]
        parts += ["## How mixed the references are", table(header, shown)]
    parts += _significance(report) + _means(report) + _kept(report)
    return "\n\n".join(parts) + "\n"


def _main_table(evaluation: Evaluation, metric: str) -> str:
    everything = evaluation.groups[0]
    scores = {system: evaluation.scores[metric, system, everything] for system in evaluation.systems}
    if metric in _TRANSLATION:
        rows = [[_cell(system), _shown(score), _cell(score.signature or "")] for system, score in scores.items()]
        return table(["system", metric, "signature"], rows)
    rows = []
    for system, score in scores.items():
        counts, length = score.counts, score.counts.reference_length if score.counts else 0
        if counts is None or not length:
            rows.append([_cell(system), *[""] * 9])
            continue
        edits = [counts.correct, counts.substitutions, counts.deletions, counts.insertions, counts.errors]
        interval = f"{100 * score.interval.low:.1f} to {100 * score.interval.high:.1f}" if score.interval else ""
        rows.append(
            [
                _cell(system),
                str(counts.utterances),
                str(length),
                *(f"{100 * edit / length:.1f}" for edit in edits),
                interval,
                f"{100 * counts.wrong_utterances / max(counts.utterances, 1):.1f}",
            ]
        )
    unit = "Wrd" if metric.startswith(("wer", "pier")) else "Tok"
    return table(["system", "Snt", unit, "Corr", "Sub", "Del", "Ins", "Err", "95 %", "S.Err"], rows)


def _significance(report: ScoreReport) -> list[str]:
    if not report.comparisons:
        return []
    rows = [
        [
            _cell(item.system),
            _cell(f"{item.group.kind} {item.group.name}".strip()),
            "{:+.2f} ({:+.2f} to {:+.2f})".format(*(100 * value for value in item.difference)),
            str(item.test.segments) + ("" if item.test.segments >= 50 else " (few)"),
            f"{item.test.z:.2f}",
            p_value(item.test.p_value),
            p_value(item.p_holm),
        ]
        for item in report.comparisons
    ]
    header = ["system", "on", "difference (95 %)", "segments", "z", "p", "p (Holm)"]
    return [f"## Against {_cell(report.baseline or '')} (MAPSSWE)", table(header, rows)]


def _means(report: ScoreReport) -> list[str]:
    rows = [
        [_cell(system), kind.replace("_", " "), *("" if value is None else f"{100 * value:.1f}" for value in means)]
        for system, found in (report.means or {}).items()
        for kind, means in _kinds(found)
    ]
    return (
        ["## Unweighted means", table(["system", "mean", "in domain", "out of domain", "full"], rows)] if rows else []
    )


def _kinds(found: SystemMeans) -> list[tuple[str, Means]]:
    kinds = (("by_set", found.by_set), ("by_domain", found.by_domain))
    return [(kind, means) for kind, means in kinds if means is not None]


def _kept(report: ScoreReport) -> list[str]:
    parts: list[str] = []
    for system, found in (report.kept or {}).items():
        parts.append(f"## What {_cell(system)} kept")
        if found.performance:
            by_set = ", ".join(f"{_cell(name)} {100 * value:.0f} %" for name, value in found.performance.by_set.items())
            undefined = ", ".join(map(_cell, found.performance.undefined))
            value = f"{100 * found.performance.value:.0f} %" if found.performance.by_set else "undefined"
            tail = f" ({by_set})" if by_set else ""
            tail += f"; undefined where the expert gains nothing: {undefined}" if undefined else ""
            parts.append(f"Normalised performance (share of the experts' gains): {value}{tail}.")
        rows = [
            [
                _cell(name),
                f"{100 * item.base:.1f}",
                f"{100 * item.merged:.1f}",
                f"{100 * item.difference:+.1f}",
                "" if item.relative is None else f"{100 * item.relative:+.0f} %",
                "" if item.accuracy_kept is None else f"{100 * item.accuracy_kept:.0f} %",
            ]
            for name, item in found.retention.items()
        ]
        if rows:
            parts.append(table(["retention", "base", "merged", "difference", "relative", "accuracy kept"], rows))
    return parts


def _title(metric: str) -> str:
    name, _, spelling = metric.partition("+")
    name, _, script = name.partition("[")
    title = METRICS[name].partition(":")[0].partition(",")[0]
    title += f", {script.rstrip(']')} alone" if script else ""
    title += f", spellings made equal ({spelling})" if spelling else ""
    return title[0].upper() + title[1:] + ("" if name in _TRANSLATION else ", %")


def _shown(score: Score) -> str:
    if score.value is None:
        return ""
    return f"{100 * score.value:.1f}" if score.counts else f"{score.value:.1f}"


def _number(count: int, noun: str) -> str:
    if count == 1:
        return f"1 {noun}"
    return f"{count} {'hypotheses'.join(noun.rsplit('hypothesis', 1))}" + ("" if noun.endswith("hypothesis") else "s")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _finite(value: Any) -> Any:
    """The same with ``None`` for NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
