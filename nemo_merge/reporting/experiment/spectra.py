"""Spectra of the task vectors of an experiment's experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .charts import Curves, lines
from .folder import Roles

_AUTOMATIC = 256 << 20  # bytes of the base up to which one SVD per matrix and expert is a matter of seconds
_DRAWN = 7


@dataclass(frozen=True)
class Spectra:
    """What the page shows of task vectors.

    Attributes:
        header, rows: norms, angles and ranks of every expert.
        chart: median over matrices of the singular values, over the largest of each.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    chart: Curves


def find_models(folder: Path, roles: Roles) -> tuple[Path, dict[str, Path]] | str:
    """The base and the experts in ``models/`` by name; or why there are none."""
    if roles.base is None or not roles.experts:
        return "base and experts are not known (--base, --expert)"
    paths = {
        name: next(
            (path for path in (folder / "models" / f"{name}.nemo", folder / "models" / name) if path.exists()), None
        )
        for name in (roles.base, *dict.fromkeys(roles.experts.values()))
    }
    if missing := [name for name, path in paths.items() if path is None]:
        return f"models/ has no {', '.join(missing)}"
    found: Mapping[str, Path] = {name: path for name, path in paths.items() if path is not None}
    return found[roles.base], {name: path for name, path in found.items() if name != roles.base}


def too_large(base: Path) -> bool:
    """Whether a base is measured only when that is asked for."""
    files = [base] if base.is_file() else [path for path in base.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files) > _AUTOMATIC


def measure_spectra(base: Path, experts: Mapping[str, Path], workers: int | None = None) -> Spectra:
    """Measures as ``nemo-merge analyze`` does, with one SVD per matrix and expert.

    Raises:
        CheckpointError: a model cannot be read.
        PlanError: the models do not fit together.
    """
    import torch

    from ...merging.analysis import measure
    from ...merging.inputs import open_inputs
    from ..analysis.page import expert_table
    from ..analysis.tables import shorter_side
    from ..markdown import percent

    names = list(experts)
    with ExitStack() as stack:
        opened_base, opened = open_inputs(base, list(experts.values()), stack)
        analysis = measure(opened_base, opened, workers=workers)
        header, rows = expert_table(analysis, names)
        found = [
            [(tensor, spectrum) for tensor, index, spectrum in analysis.total.spectra if index == place]
            for place in range(len(names))
        ]
    curves = {
        name: torch.stack([spectrum.curve for _, spectrum in mine]).quantile(0.5, dim=0).tolist()
        for name, mine in zip(names[:_DRAWN], found, strict=False)
        if mine
    }
    ranks = []
    for row, mine in zip(rows, found, strict=True):
        shares = [spectrum.effective_rank / shorter_side(tensor) for tensor, spectrum in mine]
        ranks.append([*row, percent(sum(shares) / len(shares)) if shares else ""])
    return Spectra([*header, "effective rank, mean share of full"], ranks, lines(curves))
