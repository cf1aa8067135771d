"""Packs of all experts in a merged model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..checkpoints import AdapterCheckpoint, NemoAdapterCheckpoint, PackCheckpoint
from ..checkpoints.pack import PACK_SUFFIX
from ..errors import ConfigError, PlanError
from .inputs import Source, open_source
from .merged_model import MergedModel
from .packs import PackReport, pack


def pack_experts(
    merged: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    base: Source | None = None,
    inputs: Sequence[str | os.PathLike[str]] = (),
    overwrite: bool = False,
    workers: int | None = None,
    **options: Any,
) -> list[PackReport]:
    """Packs every expert in a merged model, so that they need not be kept at full size to extend it.

    Adapters and packs are small already and left out, as are experts that the folder has a pack of.

    Args:
        merged: a model that was merged by nemo_merge.
        folder: where the packs go, as ``NAME.pack.safetensors``; it is made if it is not there.
        base: as in :func:`~nemo_merge.merging.extend`.
        inputs: as in :func:`~nemo_merge.merging.extend`.
        overwrite: replace packs that exist.
        workers: threads; the number of cores by default.
        **options: see :class:`~nemo_merge.merging.packs.PackOptions`.

    Raises:
        PlanError: experts are not found; all are named.
        CheckpointError, ConfigError, OutputError: as by :func:`~nemo_merge.merging.packs.pack`.
    """
    target = Path(folder)
    model = MergedModel(merged, base, inputs, target if target.is_dir() and not overwrite else None)
    if model.base is None:
        raise ConfigError(f"{model.path}: was merged without a base, of which packs are changes")
    found = [(member, model.locator.expert(member)) for member in model.composition.members]
    missing = [f"{member.entry['path']}: the expert {member.name} is not found" for member, at in found if at is None]
    if missing:
        raise PlanError([*missing, "say where with inputs (folders)"])
    reports = []
    target.mkdir(parents=True, exist_ok=True)
    for member, at in found:
        assert at is not None
        with ExitStack() as stack:
            expert = open_source(at.source, stack)
            small = isinstance(expert, (AdapterCheckpoint, NemoAdapterCheckpoint, PackCheckpoint))
            if small or model.locator.has_pack(expert):
                continue
        file = target / (member.name + PACK_SUFFIX)
        made = pack(at.source, model.base, file, name=member.name, overwrite=overwrite, workers=workers, **options)
        reports.append(made)
    return reports
