"""The report of an analysis as a page in Markdown, and its short form for the terminal."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import jinja2

from ...merging.analysis import Analysis, Part
from ..markdown import percent, table
from .about_parts import mean_share
from .finding import Finding
from .tables import COLUMNS, relative_effective_rank, top_tensors

_COLUMNS = 6  # experts with columns of their own in the table of statistics
_UNCHANGED = 20  # names shown; the rest is counted, and listed in summary.json

_PAGE = """# Analysis of {{ count }} expert{{ "" if count == 1 else "s" }}

Base: `{{ analysis.base.path }}`. Task vectors are expert minus base. *Made by nemo-merge analyze, from weights alone:
nothing here says how well a model recognises speech.*

## Findings
{% for finding in findings %}
- {{ "**Warning.** " if finding.level == "warning" else "" }}{{ finding.text }} *({{ finding.basis }})*
{%- else %}
Nothing stands out.
{%- endfor %}
{% for warning in analysis.warnings %}
- Checks of the inputs: {{ warning }}
{%- endfor %}

## Experts

{{ experts }}

*Kept by the mean*: what the plain mean of all task vectors keeps of this one, along its own direction.
{% if "cosines.png" in pictures %}
## Directions

![Cosine between task vectors](cosines.png)
{% endif %}
## Parts of the model

{{ modules }}

*Share*: of the squared norm, mean over experts. *Opposite signs*: share of entries that both experts of a pair move,
and move in opposite directions, all pairs together; 50 % for unrelated experts; *largest*: among the largest 20 % of
each expert in each tensor. *Effective rank*: exponential of the entropy of the singular values, over the full rank.
*Energy kept*: in the leading {{ rank }} of the singular triplets. *STI*: singular task interference of these triplets
over the sum of their singular values; comparable between parts of this page only, since it grows with their number.
*Overlap*: of the subspaces they span, mean over pairs and both sides, with that of random directions.

{{ roles }}
{% if "norms.png" in pictures %}
![Norms by depth and module](norms.png)
{% endif %}{% if "spectra.png" in pictures %}
![Spectra and effective rank](spectra.png)
{% endif %}{% if "signs.png" in pictures %}
![Sign conflicts by depth and module](signs.png)
{% endif %}{% if "interference.png" in pictures %}
![Singular task interference and overlap by depth](interference.png)
{% endif %}
## Tensors that hold most of the change

{{ tensors }}
{% if "tensors.png" in pictures %}
![Share of the squared norm by tensor](tensors.png)
{% endif %}
{%- if drifts %}
## Running statistics

{{ drifts }}

*Shift*: root mean square of the shift of the mean over channels, in standard deviations of the base. *Factor*: typical
factor by which variances change. *Between experts*: share of the pooled variance that lies between the experts' means,
which averaging variances leaves out. All {{ analysis.drifts | length }} layers are in `summary.json`; here are those
with the largest share.
{% endif %}
## Tensors that no expert changed

{{ unchanged }}

## Files

`summary.json` holds all figures of this page and those by block. `tensors.csv` has one row per tensor and expert:

{{ columns }}
"""


def page(
    analysis: Analysis, names: Sequence[str], found: Sequence[Finding], pictures: Collection[str], top: int
) -> str:
    """``README.md`` of an analysis."""
    same = [f"`{tensor.name}`" for tensor in analysis.tensors if not tensor.changed]
    rest = f" and {len(same) - _UNCHANGED} more" if len(same) > _UNCHANGED else ""
    return (
        jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
        .from_string(_PAGE)
        .render(
            analysis=analysis,
            count=len(names),
            findings=found,
            pictures=pictures,
            rank=f"{percent(analysis.rank_fraction)}",
            experts=table(*expert_table(analysis, names)),
            modules=table(*_part_table("module", analysis.modules, analysis.total)),
            roles=table(*_part_table("role", analysis.roles, analysis.total)),
            tensors=table(*_tensor_table(analysis, top)) if analysis.total.norms.any() else "No tensor changed.",
            drifts=table(*_drift_table(analysis, names, top)) if analysis.drifts else "",
            unchanged=", ".join(same[:_UNCHANGED]) + rest if same else "None: every tensor is changed by an expert.",
            columns=table(["column", "meaning"], [[f"`{key}`", meaning] for key, meaning in COLUMNS.items()]),
        )
    )


def expert_table(analysis: Analysis, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: norms and angles of every expert."""
    header = ["expert", "norm", "relative to the base", "cosine to others, mean", "kept by the mean"]
    rows = []
    total = analysis.total
    for place, name in enumerate(names):
        angles = [float(value) for other, value in enumerate(total.cosines[place]) if other != place]
        angles = [value for value in angles if not math.isnan(value)]
        rows.append(
            [
                name,
                f"{float(total.norms[place]):.4g}",
                percent(float(total.relative_norms[place]), 2),
                f"{sum(angles) / len(angles):.3f}" if angles else "",
                percent(float(total.kept_by_mean[place]), 1),
            ]
        )
    return header, rows


def _part_table(what: str, parts: dict[Any, Part], total: Part) -> tuple[list[str], list[list[str]]]:
    header = [what, "tensors", "parameters", "share", "relative norm", "cosine", "opposite signs", "largest"]
    header += ["effective rank", "energy kept", "STI", "overlap (random)"]
    rows = []
    for key, part in parts.items():
        low, high = float(part.relative_norms.min()), float(part.relative_norms.max())
        overlap = part.mean_interference(lambda found: found.overlap)
        chance = part.mean_interference(lambda found: found.chance)
        sti = part.mean_interference(lambda found: found.relative)
        rows.append(
            [
                str(key),
                str(len(part.tensors)),
                f"{part.elements:,}",
                percent(mean_share(part, total), 1),
                percent(low, 2) if low == high else f"{percent(low, 2)} to {percent(high, 2)}",
                "" if math.isnan(part.mean_cosine) else f"{part.mean_cosine:.3f}",
                percent(part.signs.pairwise, 1),
                percent(part.top_signs.pairwise, 1),
                percent(relative_effective_rank(part)),
                percent(part.mean_spectrum(lambda _, found: found.kept)),
                "" if math.isnan(sti) else f"{sti:.2f}",
                "" if math.isnan(overlap) else f"{percent(overlap)} ({percent(chance)})",
            ]
        )
    return header, rows


def _tensor_table(analysis: Analysis, top: int) -> tuple[list[str], list[list[str]]]:
    header = ["tensor", "shape", "share", "share of the parameters", "relative norm, mean"]
    rows = [
        [
            f"`{tensor.name}`",
            "x".join(map(str, tensor.spec.shape)),
            percent(share, 1),
            percent(tensor.spec.numel / analysis.total.elements, 1),
            percent(float(tensor.norms.mean()) / tensor.measures.base**0.5, 2) if tensor.measures.base else "",
        ]
        for tensor, share in top_tensors(analysis, top)
    ]
    return header, rows


def _drift_table(analysis: Analysis, names: Sequence[str], top: int) -> tuple[list[str], list[list[str]]]:
    few = len(names) <= _COLUMNS
    header = ["layer", "between experts", *(f"{name}: shift, factor" for name in names if few)]
    header += [] if few else ["largest shift", "largest factor"]
    rows = []
    for drift in sorted(analysis.drifts, key=lambda drift: -drift.between)[:top]:
        both = [f"{shift:.2f}, {factor:.2f}" for shift, factor in zip(drift.shift, drift.factor, strict=True)]
        cells = both if few else [f"{max(drift.shift):.2f}", f"{max(drift.factor):.2f}"]
        rows.append([f"`{drift.name}`", percent(drift.between, 1), *cells])
    return header, rows
