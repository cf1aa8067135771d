"""The measurements as tables: one row per tensor and expert, and one summary that programs can read."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ... import __version__
from ...merging.analysis import Analysis, Part, TensorAnalysis
from ...merging.measures import KEPT
from ..markdown import percent
from .about_parts import excess_overlap, mean_share
from .finding import Finding

FORMAT = "nemo_merge analysis 1"

COLUMNS = {
    "tensor": "name of the tensor",
    "expert": "name of the expert",
    "role": "what the tensor is",
    "module": "part of the model",
    "stack": "stack of blocks that it belongs to",
    "block": "number of its block, from 0",
    "shape": "sizes, with x between them",
    "elements": "number of entries",
    "base_norm": "norm of the base's tensor",
    "norm": "norm of the task vector (expert minus base)",
    "relative_norm": "norm over base_norm",
    "share": "share of the expert's squared norm over all trained tensors; empty for running statistics",
    "cosine_to_others": "cosine to the sum of the other experts' task vectors",
    "sign_conflict": "share of opposite signs over all pairs of experts and the entries that both move",
    "top_sign_conflict": f"the same among the largest {percent(KEPT)} magnitudes of each expert in the tensor",
    "rank": "number of leading singular triplets that the columns after it look at",
    "kept_energy": "share of the squared norm in these triplets",
    "rank_90": "number of singular values that hold 90 % of the squared norm",
    "effective_rank": "exponential of the entropy of the normalised singular values",
    "stable_rank": "squared Frobenius norm over squared spectral norm",
    "sti": "singular task interference of all experts",
    "relative_sti": "sti over the sum of the singular values that it looks at",
    "overlap": "overlap of the experts' singular subspaces, mean over pairs and both sides",
    "overlap_by_chance": "the same for random directions",
    "top_rows": "embeddings and heads: share of the squared norm in the 1 % of the rows that move most",
}
"""Columns of ``tensors.csv``; the same for all experts from ``sti`` to ``overlap_by_chance`` and for signs."""


def expert_names(paths: Sequence[Path]) -> list[str]:
    """Short names for checkpoints: file names without ``.nemo``, with as many folders as tell them apart."""
    parts = [[*path.parts[:-1], path.name.removesuffix(".nemo")] for path in paths]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{part[-1]} ({index})" for index, part in enumerate(parts)]


def tensors_csv(analysis: Analysis, names: Sequence[str]) -> bytes:
    """``tensors.csv``: one row per tensor and expert, with :data:`COLUMNS`; what cannot be told is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    totals = analysis.total.gram.diagonal()
    for tensor in analysis.tensors:
        for place, name in enumerate(names):
            row = _row(tensor, place, float(totals[place]))
            writer.writerow(
                {"tensor": tensor.name, "expert": name, **{key: _cell(value) for key, value in row.items()}}
            )
    return text.getvalue().encode()


def _row(tensor: TensorAnalysis, place: int, total: float) -> dict[str, Any]:
    found = tensor.measures
    energy, base = float(found.gram[place, place]), found.base**0.5
    row: dict[str, Any] = {
        "role": tensor.role.value,
        "module": tensor.module,
        "shape": "x".join(map(str, tensor.spec.shape)),
        "elements": tensor.spec.numel,
        "base_norm": base,
        "norm": energy**0.5,
        "relative_norm": energy**0.5 / base if base else None,
    }
    if tensor.depth:
        row |= {"stack": tensor.depth.stack, "block": tensor.depth.block}
    if tensor.weights and total:
        row["share"] = energy / total
    if len(found.gram) > 1:
        row |= {
            "cosine_to_others": _cosine_to_others(found.gram, place),
            "sign_conflict": found.signs.pairwise,
            "top_sign_conflict": found.top_signs.pairwise,
        }
    if found.spectra and energy:
        spectrum = found.spectra[place]
        row |= {
            "rank": found.rank,
            "kept_energy": spectrum.kept,
            "rank_90": spectrum.rank_90,
            "effective_rank": spectrum.effective_rank,
            "stable_rank": spectrum.stable_rank,
        }
    if found.interference:
        row |= {
            "sti": found.interference.sti,
            "relative_sti": found.interference.relative,
            "overlap": found.interference.overlap,
            "overlap_by_chance": found.interference.chance,
        }
    if found.top_rows:
        row["top_rows"] = found.top_rows[place]
    return row


def _cosine_to_others(gram: Tensor, place: int) -> float:
    own, to_all = float(gram[place, place]), float(gram[place].sum())
    others = float(gram.sum()) - 2 * to_all + own
    return (to_all - own) / (own * others) ** 0.5 if own > 0 and others > 0 else math.nan


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.8g}"
    return "" if value is None else value


def summary(analysis: Analysis, names: Sequence[str], found: Sequence[Finding], top: int) -> dict[str, Any]:
    """``summary.json``; lists and matrices are in the order of ``experts``, and null stands for what cannot be told."""
    total = analysis.total
    summary = {
        "format": FORMAT,
        "nemo_merge": __version__,
        "base": str(analysis.base.path),
        "experts": [
            {"name": name, "path": str(expert.path)} for name, expert in zip(names, analysis.experts, strict=True)
        ],
        "options": {"rank": analysis.rank_fraction, "top": top},
        "findings": [
            {
                "kind": item.kind,
                "level": item.level,
                "text": item.text,
                "basis": item.basis,
                "values": dict(item.values),
            }
            for item in found
        ],
        "warnings": list(analysis.warnings),
        "all": {
            **part_summary(total, total),
            **_matrices(total),
            "gram": total.gram.tolist(),
            "kept_by_mean": total.kept_by_mean.tolist(),
        },
        "modules": {
            str(key): {**part_summary(part, total), **_matrices(part)} for key, part in analysis.modules.items()
        },
        "roles": {str(key): part_summary(part, total) for key, part in analysis.roles.items()},
        "depths": {
            stack: [{"block": block, **part_summary(part, total)} for block, part in blocks.items()]
            for stack, blocks in analysis.depths.items()
        },
        "top_tensors": [
            {"tensor": tensor.name, "share": share, "elements": tensor.spec.numel}
            for tensor, share in top_tensors(analysis, top)
        ],
        "unchanged_tensors": [tensor.name for tensor in analysis.tensors if not tensor.changed],
        "batch_norm": [
            {"layer": drift.name, "shift": list(drift.shift), "factor": list(drift.factor), "between": drift.between}
            for drift in analysis.drifts
        ],
    }
    plain = _plain(summary)
    assert isinstance(plain, dict)
    return plain


def part_summary(part: Part, total: Part) -> dict[str, Any]:
    """Everything that is told of one part of the model."""
    energies, totals = part.gram.diagonal(), total.gram.diagonal()
    return {
        "tensors": len(part.tensors),
        "elements": part.elements,
        "base_norm": part.base,
        "norms": part.norms.tolist(),
        "relative_norms": part.relative_norms.tolist(),
        "shares": (energies / totals).tolist(),
        "mean_share": mean_share(part, total),
        "mean_cosine": part.mean_cosine,
        "sign_conflicts": {
            "pairwise": part.signs.pairwise,
            "any": part.signs.any,
            "top_pairwise": part.top_signs.pairwise,
            "top_any": part.top_signs.any,
        },
        "spectra": {
            "effective_rank": part.mean_spectrum(lambda _, found: found.effective_rank),
            "relative_effective_rank": relative_effective_rank(part),
            "stable_rank": part.mean_spectrum(lambda _, found: found.stable_rank),
            "rank_90": part.mean_spectrum(lambda _, found: found.rank_90),
            "kept_energy": part.mean_spectrum(lambda _, found: found.kept),
        },
        "interference": {
            "sti": sum(found.sti for found in part.interference) if part.interference else math.nan,
            "relative_sti": part.mean_interference(lambda found: found.relative),
            "overlap": part.mean_interference(lambda found: found.overlap),
            "overlap_by_chance": part.mean_interference(lambda found: found.chance),
            "excess_overlap": excess_overlap(part),
        },
    }


def _matrices(part: Part) -> dict[str, Any]:
    """What is told of every pair of experts, for parts that are few."""
    return {
        "cosines": part.cosines.tolist(),
        "sign_conflicts_by_pair": part.signs.pairs.tolist(),
        "top_sign_conflicts_by_pair": part.top_signs.pairs.tolist(),
    }


def relative_effective_rank(part: Part) -> float:
    """Effective rank over the shorter side, mean over tensors and experts."""
    return part.mean_spectrum(lambda tensor, found: found.effective_rank / shorter_side(tensor))


def shorter_side(tensor: TensorAnalysis) -> int:
    """The largest rank that the tensor can have as a matrix."""
    rows = tensor.spec.shape[0]
    return min(rows, tensor.spec.numel // rows)


def top_tensors(analysis: Analysis, top: int) -> list[tuple[TensorAnalysis, float]]:
    """The tensors that hold most of the squared norm, mean over experts, with their share."""
    shares = [
        (tensor, mean_share(part, analysis.total))
        for tensor, part in zip(analysis.trained, analysis.by(lambda tensor: tensor.name).values(), strict=True)
        if tensor.changed
    ]
    return sorted(shares, key=lambda item: -item[1])[:top]


def to_json(content: Mapping[str, Any]) -> bytes:
    """Indented JSON without the numbers that it cannot hold."""
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
