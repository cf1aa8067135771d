"""Findings about parts of the model: where the change lies, and what it looks like there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...merging.analysis import Analysis, Part
from ...tensors import Role
from ..markdown import percent
from .finding import RULE_OF_THUMB, Finding, listed

CONCENTRATED = 0.25
"""How much larger a share of the change than of the parameters must be to be worth a sentence."""
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
BETWEEN = 0.05
"""Share of the pooled variance between the experts' means from which it is told."""


def signs(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
    """Whether experts agree on the direction of single entries."""
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


def places(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
    """Modules and tensors that hold most of the change."""
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


def drifts(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
    """Embeddings and heads that move farther than the rest."""
    for role in (Role.EMBEDDING.value, Role.HEAD.value):
        part = analysis.roles.get(role)
        if part is None:
            continue
        factors = (part.relative_norms / analysis.total.relative_norms).nan_to_num(0).tolist()
        far = [name for name, factor in zip(names, factors, strict=True) if factor >= DRIFTED]
        if far:
            text = (
                f"{listed(far)}: the {role} moves up to {max(factors):.1f} times as far, for its size, as all weights "
                f"do. nemo-merge plan shows how a method treats {role}s; rules give them another scale."
            )
            values = {"experts": far, "role": role, "factor": max(factors)}
            yield Finding("drift", "note", text, f"{RULE_OF_THUMB}: {DRIFTED:g} times", values)


def spectra(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
    """Whether changes of matrices are of low rank."""
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


def overlaps(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
    """Whether experts use the same singular subspaces."""
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


def statistics(analysis: Analysis, names: Sequence[str]) -> Iterator[Finding]:
    """What averaging batch normalisation's variances leaves out."""
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


def mean_share(part: Part, total: Part) -> float:
    """Share of the squared norm, mean over the experts that differ from the base."""
    energies, totals = part.gram.diagonal(), total.gram.diagonal()
    moved = totals > 0
    return float((energies[moved] / totals[moved]).mean()) if bool(moved.any()) else 0.0


def excess_overlap(part: Part) -> float:
    """Overlap of singular subspaces on a scale where 0 is chance and 1 the same subspace; NaN if there is none."""
    overlap = part.mean_interference(lambda found: found.overlap)
    chance = part.mean_interference(lambda found: found.chance)
    return (overlap - chance) / (1 - chance) if chance < 1 else float("nan")
