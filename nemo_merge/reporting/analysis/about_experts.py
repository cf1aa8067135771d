"""Findings about experts as wholes: how far they moved, and in which directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ...merging.analysis import Analysis, TensorAnalysis
from ...merging.measures import pairs
from ...tensors import Role
from ..markdown import percent
from .finding import RULE_OF_THUMB, Finding, listed

FARTHER = 2.0
"""Times the median norm of the others from which an expert dominates: its square then weighs four times theirs."""
ORTHOGONAL = 0.1
"""Mean magnitude of the cosines below which task vectors are called nearly orthogonal."""
OPPOSED = -0.2
"""Cosine of a pair below which two experts work against each other."""
SAME = 0.999
"""Cosine of a pair above which two experts are the same model, if their norms differ by less than 1 %."""
WELL_KEPT = 0.8
"""Share of each task vector that the mean keeps from which averaging costs little."""
FOREIGN = 1.0
"""Norm of the task vectors of all matrices over that of the base; independent weights of one size give 1.41."""
ROUNDED = 0.1
"""Share of a task vector's norm that is rounding, from which it is told; a merge warns from the same share."""


def unchanged(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
    """Experts and modules that do not differ from the base."""
    still = [name for name, norm in zip(names, analysis.total.norms.tolist(), strict=True) if norm == 0]
    if len(still) == len(names):
        text = "No expert differs from the base in any trained tensor: every merge is the base."
        yield Finding("unchanged_expert", "warning", text, "exact comparison", {"experts": still})
        return
    for name in still:
        text = f"{name} equals the base in every trained tensor: it only pulls a merge back to the base."
        yield Finding("unchanged_expert", "warning", text, "exact comparison", {"experts": [name]})
    for module, part in analysis.modules.items():
        if not bool(part.norms.any()):
            text = (
                f"No expert changed the {module} ({len(part.tensors)} tensors, {part.elements:,} parameters): "
                "a merge copies it from the base."
            )
            yield Finding("unchanged_module", "note", text, "exact comparison", {"module": module})


def foreign(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
    """Experts that were trained from something else."""
    matrices = analysis.roles.get(Role.MATRIX.value)
    if matrices is None:
        return
    for name, norm in zip(names, matrices.relative_norms.tolist(), strict=True):
        if norm >= FOREIGN:
            text = (
                f"{name} lies {norm:.2f} times the norm of the base's matrices away from them: it was probably not "
                "fine-tuned from this base. Task vectors mean nothing then; check base=."
            )
            basis = f"{RULE_OF_THUMB}: {FOREIGN:g}; two independent sets of weights of one size are 1.41 apart"
            yield Finding("foreign_expert", "warning", text, basis, {"expert": name, "relative_norm": norm})


def twins(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
    """Experts that are the same model."""
    cosines, norms = analysis.total.cosines, analysis.total.norms
    twins = [
        (names[i], names[j])
        for i, j in pairs(len(names))
        if cosines[i, j] > SAME and abs(float(norms[i] / norms[j]) - 1) < 0.01
    ]
    if twins:
        text = (
            f"{listed([' and '.join(pair) for pair in twins])}: nearly the same model (cosine above {SAME}): a merge "
            "counts it twice. Leave one out, or halve their weights."
        )
        basis = f"{RULE_OF_THUMB}: cosine above {SAME} and norms within 1 %"
        yield Finding("twin_experts", "warning", text, basis, {"pairs": [list(pair) for pair in twins]})


def dominance(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
    """Experts that move much farther than the others."""
    norms = analysis.total.norms
    moved = [place for place in range(len(names)) if norms[place] > 0]
    if len(moved) < 2:
        return
    for place in moved:
        others = torch.tensor([float(norms[other]) for other in moved if other != place], dtype=torch.float64)
        factor = float(norms[place] / others.quantile(0.5))
        if factor >= FARTHER:
            weights = [
                float(f"{float(norms[moved].min() / norms[i]):.3g}") if i in moved else 1.0 for i in range(len(names))
            ]
            text = (
                f"{names[place]} moves {factor:.1f} times as far from the base as the others (median): it dominates "
                f"equal weights. method.weights=[{','.join(f'{weight:g}' for weight in weights)}] gives all task "
                "vectors the same norm."
            )
            basis = f"{RULE_OF_THUMB}: {FARTHER:g} times the median norm of the others; the weights are exact"
            values = {"expert": names[place], "factor": factor, "weights": weights}
            yield Finding("dominating_expert", "warning", text, basis, values)


def angles(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
    """Whether experts move in the same, in unrelated or in opposite directions."""
    total = analysis.total
    moved = [place for place in range(len(names)) if total.norms[place] > 0]
    if len(moved) < 2:
        return
    angles = [(float(total.cosines[i, j]), i, j) for i, j in pairs(len(names)) if i in moved and j in moved]
    size = sum(abs(cosine) for cosine, _, _ in angles) / len(angles)
    mean = total.mean_cosine
    shown = f"{round(mean, 2) + 0.0:.2f}"  # never -0.00
    kept = total.kept_by_mean[moved]
    low, high = float(kept.min()), float(kept.max())
    span = f"{percent(low)}" if f"{percent(low)}" == f"{percent(high)}" else f"{percent(low)} to {percent(high)}"
    values = {"mean_cosine": mean, "kept_by_mean": total.kept_by_mean.tolist()}
    if size < ORTHOGONAL:
        text = (
            f"The experts move in nearly orthogonal directions (mean cosine {shown}): their plain mean "
            f"keeps {span} of each change along its own direction. A larger scale, or a method that works in "
            "singular subspaces (tsvm, boosted_tsvm), keeps more."
        )
        basis = (
            f"{RULE_OF_THUMB}: mean magnitude of the cosines below {ORTHOGONAL:g}; what the mean keeps is exact, for "
            "subspaces see Gargiulo et al., 2025, arXiv 2412.00081"
        )
        yield Finding("orthogonal", "note", text, basis, values)
    elif low >= WELL_KEPT:
        text = (
            f"The experts move in nearly the same direction (mean cosine {shown}): their plain mean keeps {span} "
            "of each change, so that averages (soup, karcher) lose little."
        )
        yield Finding(
            "aligned", "note", text, f"{RULE_OF_THUMB}: {percent(WELL_KEPT)}; what the mean keeps is exact", values
        )
    opposed = [(cosine, i, j) for cosine, i, j in angles if cosine < OPPOSED]
    if opposed:
        cosine, i, j = min(opposed)
        more = f", and so do {len(opposed) - 1} more pairs" if len(opposed) > 1 else ""
        text = (
            f"{names[i]} and {names[j]} pull in opposite directions (cosine {cosine:.2f}){more}: where both are added, "
            "each undoes part of the other."
        )
        values = {"experts": [names[i], names[j]], "cosine": cosine, "pairs": len(opposed)}
        yield Finding("opposed", "warning", text, f"{RULE_OF_THUMB}: cosine below {OPPOSED:g}", values)


def rounding(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
    """Experts whose distance from the base is made of rounding."""
    for place, name in enumerate(names):
        noise = sum(
            rounding_energy(tensor, analysis.experts[place].specs[tensor.name].dtype, place)
            for tensor in _moved(analysis, place)
        )
        norm = float(analysis.total.norms[place])
        share = noise**0.5 / norm if norm else 0.0
        if share > ROUNDED:
            text = (
                f"{name} is stored in 16 bits: rounding alone makes about {percent(min(share, 1))} of its distance "
                "from the base. Merge from a 32-bit copy of the expert if there is one."
            )
            basis = (
                f"rounding errors taken as uniform over a unit in the last place, {percent(ROUNDED)} of the norm as in "
                "a merge's own warning"
            )
            yield Finding("rounding", "warning", text, basis, {"expert": name, "share": share})


def _moved(analysis: Analysis, expert: int) -> list[TensorAnalysis]:
    return [tensor for tensor in analysis.trained if float(tensor.measures.gram[expert, expert]) > 0]


def rounding_energy(tensor: TensorAnalysis, dtype: torch.dtype, expert: int) -> float:
    """Squared norm to expect of the rounding errors of one expert's tensor; 0 for types of 32 bits and more.

    With ``w = m 2^e``, ``1 <= m < 2``, the unit in the last place is ``eps |w| / m``, an error uniform over it has the
    variance ``eps^2 w^2 / (12 m^2)``, and the mean of ``1 / m^2`` for evenly spread logarithms is ``3 / (8 ln 2)``.
    """
    if dtype.itemsize >= 4:
        return 0.0
    return torch.finfo(dtype).eps ** 2 * float(tensor.measures.experts[expert]) * 3 / (8 * 12 * 0.6931471805599453)
