"""Analyses checkpoints and writes the report."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checkpoints import check_output
from ...checkpoints._work import WorkFolder
from ...errors import ConfigError, OutputError
from ...merging.analysis import measure
from ...merging.inputs import Source, open_inputs
from ...merging.progress import bar
from .finding import Finding
from .findings import findings
from .page import expert_table, page
from .tables import FORMAT, expert_names, summary, tensors_csv, to_json

logger = logging.getLogger("nemo_merge")


@dataclass(frozen=True)
class AnalysisReport:
    """What an analysis found.

    Attributes:
        findings: sentences with their figures, warnings first.
        summary: all figures by module, role and block, as in ``summary.json``.
        experts: header and rows of the short table.
        output: the folder of the report, or None when none was asked for.
        seconds: wall-clock time.
    """

    findings: Sequence[Finding]
    summary: Mapping[str, Any]
    experts: tuple[Sequence[str], Sequence[Sequence[str]]]
    output: Path | None = None
    seconds: float = 0.0


def analyze(
    base: Source,
    experts: Sequence[Source],
    *,
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    top: int = 20,
    rank: float | None = None,
    pictures: bool = True,
    workers: int | None = None,
    progress: bool | None = None,
) -> AnalysisReport:
    """Measures how experts differ from their base and from each other; needs neither data nor NeMo.

    The folder gets ``README.md`` (findings, tables, pictures), ``tensors.csv`` (a row per tensor and expert),
    ``summary.json`` and the pictures. It appears whole or not at all, with the same bytes whatever ``workers``.

    Example:
        >>> analyze("base.nemo", ["a.nemo", "b.nemo"], output="analysis").findings  # doctest: +SKIP
        >>> import torch
        >>> from nemo_merge.checkpoints import StateDictCheckpoint
        >>> base, expert = {"w": torch.zeros(2, 2)}, {"w": torch.ones(2, 2)}
        >>> report = analyze(StateDictCheckpoint(base, "b"), [StateDictCheckpoint(expert, "e")])
        >>> report.summary.get("all").get("norms")
        [2.0]

    Args:
        base: the model that the experts were fine-tuned from.
        experts: the fine-tuned models.
        output: folder of the report; None writes nothing.
        overwrite: replace the folder of an earlier analysis.
        top: number of tensors in the tables of those that hold most of the change.
        rank: share of the singular triplets of each matrix that singular task interference looks at; by default one
            over the number of experts, as TSV-M takes, and at most a half.
        pictures: draw pictures; needs matplotlib.
        workers: threads; the number of cores by default.
        progress: show a progress bar; by default only on a terminal.

    Raises:
        CheckpointError: an input cannot be read.
        PlanError: the inputs do not fit together; all problems are listed, as for a merge.
        ConfigError: an option out of its range, no base, or matplotlib is missing.
        OutputError: the output exists, is no analysis, or cannot be written.
    """
    started = time.monotonic()
    if top < 1:
        raise ConfigError(f"top={top!r} is out of range: it is a number of tensors, 1 or more")
    if base is None:
        raise ConfigError("analyze measures task vectors and needs a base; pass base=")
    folder = None if output is None else Path(output)
    if folder is not None:
        _check_folder(folder, overwrite)
        if pictures and importlib.util.find_spec("matplotlib") is None:
            raise ConfigError("pictures need matplotlib: pip install 'nemo-merge[report]', or pass pictures=false")
    with ExitStack() as stack:
        opened_base, opened_experts = open_inputs(base, experts, stack)
        assert opened_base is not None
        opened = [opened_base, *opened_experts]
        total = sum(spec.nbytes for spec in opened[0].specs.values())
        with bar(f"analysing {len(opened) - 1} experts", total, progress) as advance:
            analysis = measure(opened[0], opened[1:], rank=rank, workers=workers, progress=advance)
        names = expert_names([expert.path for expert in opened[1:]])
        found = findings(analysis, names)
        content = summary(analysis, names, found, top)
        if folder is not None:
            drawn: dict[str, bytes] = {}
            if pictures:
                from .pictures import pictures as draw

                drawn = draw(analysis, names, top)
            files = {
                "README.md": page(analysis, names, found, drawn, top).encode(),
                "tensors.csv": tensors_csv(analysis, names),
                "summary.json": to_json(content),
                **drawn,
            }
            WorkFolder(folder).publish_folder(files)
        for warning in analysis.warnings:
            logger.warning(warning)
        return AnalysisReport(found, content, expert_table(analysis, names), folder, time.monotonic() - started)


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Refuses what must not be replaced: everything but an earlier analysis."""
    check_output(folder, overwrite)
    if folder.exists() or folder.is_symlink():
        try:
            earlier = json.loads((folder / "summary.json").read_text(encoding="utf-8")).get("format") == FORMAT
        except (OSError, ValueError, AttributeError):
            earlier = False
        if not earlier:
            raise OutputError(f"{folder}: is not the folder of an earlier analysis and is left alone; choose another")
