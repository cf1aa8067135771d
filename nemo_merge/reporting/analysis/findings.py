"""What an analysis says in plain language; every sentence has its figure, and every threshold its reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ...merging.analysis import Analysis, Part, TensorAnalysis
from ...merging.measures import pairs
from ...tensors import Role
from ..markdown import percent

RULE_OF_THUMB = "rule of thumb"
_LISTED = 5  # experts named in a sentence; the rest is counted

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
CONCENTRATED = 0.25
"""How much larger a share of the change than of the parameters must be to be worth a sentence."""
FOREIGN = 1.0
"""Norm of the task vectors of all matrices over that of the base; independent weights of one size give 1.41."""
DRIFTED = 3.0
"""Times the relative norm of all weights from which embeddings or heads are said to drift."""
UNDECIDED = 0.05
"""Distance from one half within which signs agree no more than by chance."""
LOW_RANK = 0.9
"""Share of the energy in the leading triplets from which truncation costs little."""
NOT_LOW_RANK = 0.6
"""Share of the energy in the leading triplets below which truncation costs much."""
OVERLAP = 0.1
"""How far the overlap of subspaces is on the way from chance to identity to be worth a sentence."""
ROUNDED = 0.1
"""Share of a task vector's norm that is rounding, from which it is told; a merge warns from the same share."""
BETWEEN = 0.05
"""Share of the pooled variance between the experts' means from which it is told."""


@dataclass(frozen=True)
class Finding:
    """One sentence about the experts.

    Attributes:
        kind: what it is about; the same kind always comes from the same test.
        level: ``warning`` for what may spoil a merge, ``note`` for what helps to choose.
        text: the sentence, with its figures.
        basis: what the threshold or the advice rests on.
        values: the figures.
    """

    kind: str
    level: Literal["warning", "note"]
    text: str
    basis: str
    values: Mapping[str, Any] = field(default_factory=dict)


def findings(analysis: Analysis, names: Sequence[str]) -> list[Finding]:
    """All findings, warnings first.

    Args:
        analysis: what was measured.
        names: what the experts are called, in their order.
    """
    tests = (
        _unchanged,
        _foreign,
        _twins,
        _dominance,
        _angles,
        _rounding,
        _signs,
        _places,
        _drifts,
        _spectra,
        _overlaps,
    )
    found = [finding for test in (*tests, _statistics) for finding in test(analysis, names)]
    return sorted(found, key=lambda finding: finding.level != "warning")


def _unchanged(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
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


def _foreign(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
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


def _twins(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
    cosines, norms = analysis.total.cosines, analysis.total.norms
    twins = [
        (names[i], names[j])
        for i, j in pairs(len(names))
        if cosines[i, j] > SAME and abs(float(norms[i] / norms[j]) - 1) < 0.01
    ]
    if twins:
        text = (
            f"{_listed([' and '.join(pair) for pair in twins])}: nearly the same model (cosine above {SAME}): a merge "
            "counts it twice. Leave one out, or halve their weights."
        )
        basis = f"{RULE_OF_THUMB}: cosine above {SAME} and norms within 1 %"
        yield Finding("twin_experts", "warning", text, basis, {"pairs": [list(pair) for pair in twins]})


def _dominance(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
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


def _angles(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
    total = analysis.total
    moved = [place for place in range(len(names)) if total.norms[place] > 0]
    if len(moved) < 2:
        return
    angles = [(float(total.cosines[i, j]), i, j) for i, j in pairs(len(names)) if i in moved and j in moved]
    size = sum(abs(cosine) for cosine, _, _ in angles) / len(angles)
    mean, kept = total.mean_cosine, total.kept_by_mean[moved]
    low, high = float(kept.min()), float(kept.max())
    span = f"{percent(low)}" if f"{percent(low)}" == f"{percent(high)}" else f"{percent(low)} to {percent(high)}"
    values = {"mean_cosine": mean, "kept_by_mean": total.kept_by_mean.tolist()}
    if size < ORTHOGONAL:
        text = (
            f"The experts move in nearly orthogonal directions (mean cosine {round(mean, 2) + 0.0:.2f}): their plain mean keeps "
            f"{span} of each change along its own direction. A larger scale, or a method that works in "
            "singular subspaces (tsvm, boosted_tsvm), keeps more."
        )
        basis = (
            f"{RULE_OF_THUMB}: mean magnitude of the cosines below {ORTHOGONAL:g}; what the mean keeps is exact, for "
            "subspaces see Gargiulo et al., 2025, arXiv 2412.00081"
        )
        yield Finding("orthogonal", "note", text, basis, values)
    elif low >= WELL_KEPT:
        text = (
            f"The experts move in nearly the same direction (mean cosine {round(mean, 2) + 0.0:.2f}): their plain mean keeps {span} "
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


def _rounding(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
    for place, name in enumerate(names):
        noise = sum(
            rounding_energy(tensor, analysis.experts[place][tensor.name].dtype, place)
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


def _signs(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
    share = analysis.total.top_signs.pairwise
    values = {"top_pairwise": share, "pairwise": analysis.total.signs.pairwise}
    entries = "the entries that are among the largest 20 % of both experts of a pair"
    if share > 0.5 + UNDECIDED:
        text = (
            f"Signs differ in {percent(share)} of {entries}: more than the 50 % of chance, so experts undo each other."
        )
        yield Finding("sign_conflict", "warning", text, f"{RULE_OF_THUMB}: {percent(0.5 + UNDECIDED)}", values)
    elif share > 0.5 - UNDECIDED:
        text = (
            f"Signs differ in {percent(share)} of {entries}, as by chance (50 %): entry by entry the experts do not "
            "agree on a direction, so electing signs (ties) follows magnitudes only."
        )
        basis = (
            f"{RULE_OF_THUMB}: within {percent(UNDECIDED)} of one half; entries trimmed as in TIES, arXiv 2306.01708"
        )
        yield Finding("sign_chance", "note", text, basis, values)
    elif share < 0.5 - UNDECIDED:
        text = (
            f"Signs differ in {percent(share)} of {entries}, less than by chance (50 %): large changes tend to agree."
        )
        yield Finding("sign_agreement", "note", text, f"{RULE_OF_THUMB}: below {percent(0.5 - UNDECIDED)}", values)


def mean_share(part: Part, total: Part) -> float:
    """Share of the squared norm, mean over the experts that differ from the base."""
    energies, totals = part.gram.diagonal(), total.gram.diagonal()
    moved = totals > 0
    return float((energies[moved] / totals[moved]).mean()) if bool(moved.any()) else 0.0


def _places(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
    total = analysis.total
    for module, part in analysis.modules.items():
        share, size = mean_share(part, total), part.elements / max(total.elements, 1)
        if len(analysis.modules) > 1 and share >= 0.5 and share - size >= CONCENTRATED:
            text = (
                f"{percent(share)} of the squared change lies in the {module}, with {percent(size)} of the parameters."
            )
            basis = (
                f"{RULE_OF_THUMB}: half of the change, and {percent(CONCENTRATED)} more than its part of the parameters"
            )
            yield Finding("concentrated", "note", text, basis, {"module": module, "share": share, "parameters": size})
    singles = analysis.by(lambda tensor: tensor.name)
    for name, part in singles.items():
        share, size = mean_share(part, total), part.elements / max(total.elements, 1)
        if share - size >= CONCENTRATED:
            text = (
                f"{name} alone holds {percent(share)} of the squared change with {percent(size, 1)} of the parameters."
            )
            basis = f"{RULE_OF_THUMB}: {percent(CONCENTRATED)} more than its part of the parameters"
            yield Finding(
                "dominating_tensor", "note", text, basis, {"tensor": name, "share": share, "parameters": size}
            )


def _drifts(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
    for role in (Role.EMBEDDING.value, Role.HEAD.value):
        part = analysis.roles.get(role)
        if part is None:
            continue
        factors = (part.relative_norms / analysis.total.relative_norms).nan_to_num(0).tolist()
        far = [name for name, factor in zip(names, factors, strict=True) if factor >= DRIFTED]
        if far:
            text = (
                f"{_listed(far)}: the {role} moves up to {max(factors):.1f} times as far, for its size, as all weights "
                f"do. nemo-merge plan shows how a method treats {role}s; rules give them another scale."
            )
            values = {"experts": far, "role": role, "factor": max(factors)}
            yield Finding("drift", "note", text, f"{RULE_OF_THUMB}: {DRIFTED:g} times", values)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _spectra(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
    part = analysis.by(lambda tensor: tensor.measures.interference is not None or None).get(True)
    if part is None or not part.spectra:
        return
    kept = part.mean_spectrum(lambda _, found: found.kept)
    values = {"kept": kept, "rank_fraction": analysis.rank_fraction}
    where = (
        f"the leading {percent(analysis.rank_fraction)} of singular values hold {percent(kept)} of the energy (mean)"
    )
    basis = f"exact; {RULE_OF_THUMB}: {percent(LOW_RANK)} and {percent(NOT_LOW_RANK)}"
    if kept >= LOW_RANK:
        text = f"The changes of matrices are of low rank: {where}. Truncation, as in tsvm, costs little."
        yield Finding("low_rank", "note", text, basis, values)
    elif kept < NOT_LOW_RANK:
        text = (
            f"The changes of matrices are not of low rank: {where}. Truncation at this rank, as in tsvm, drops the "
            "rest; a larger method.rank_fraction keeps more."
        )
        yield Finding("not_low_rank", "note", text, basis, values)


def excess_overlap(part: Part) -> float:
    """Overlap of singular subspaces on a scale where 0 is chance and 1 the same subspace; NaN if there is none."""
    overlap = part.mean_interference(lambda found: found.overlap)
    chance = part.mean_interference(lambda found: found.chance)
    return (overlap - chance) / (1 - chance) if chance < 1 else float("nan")


def _overlaps(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
    excess = excess_overlap(analysis.total)
    if excess >= OVERLAP:
        overlap = analysis.total.mean_interference(lambda found: found.overlap)
        chance = analysis.total.mean_interference(lambda found: found.chance)
        text = (
            f"The experts' leading singular subspaces overlap by {percent(overlap)} (chance: {percent(chance)}): they "
            "write to the same directions, which is where a sum interferes and what tsvm's orthogonalisation undoes."
        )
        basis = (
            f"{RULE_OF_THUMB}: {percent(OVERLAP)} of the way from chance to identity; overlap as in Hu et al., 2022, "
            "LoRA, section 7.2; Gargiulo et al., 2025, arXiv 2412.00081"
        )
        yield Finding("overlap", "note", text, basis, {"overlap": overlap, "chance": chance})


def _statistics(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
    if len(names) < 2 or not analysis.drifts:
        return
    worst = max(analysis.drifts, key=lambda drift: drift.between)
    mean = sum(drift.between for drift in analysis.drifts) / len(analysis.drifts)
    if worst.between >= BETWEEN:
        text = (
            f"Batch normalisation: up to {percent(worst.between)} of the pooled variance lies between the experts' "
            f"means ({worst.name}; mean over layers {percent(mean, 1)}). batch_norm=average leaves that out, "
            "batch_norm=pooled counts it."
        )
        basis = f"law of total variance, exact; {RULE_OF_THUMB}: told from {percent(BETWEEN)}"
        yield Finding("statistics", "note", text, basis, {"layer": worst.name, "between": worst.between, "mean": mean})
