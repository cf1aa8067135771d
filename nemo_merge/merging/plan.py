"""Decides what happens to every tensor, and finds everything that stands against a merge before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, get_args

import torch

from ..checkpoints import Checkpoint, TensorSpec
from ..errors import ConfigError, PlanError, did_you_mean
from ..methods import Method
from ..tensors import Role, role_of
from .checks import compare_headers
from .parallel import default_workers, single_threaded_torch
from .scan import Scan, scan_tensor

BatchNorm = Literal["average", "pooled", "base"]
DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Treatment(StrEnum):
    """What happens to a tensor."""

    METHOD = "method"
    """The method's own arithmetic."""
    MEAN = "mean"
    """Base plus scale times the mean of the weighted task vectors: what the method does not treat itself."""
    AVERAGE = "average"
    """Mean of the experts' statistics."""
    POOLED = "pooled"
    """Variance by the law of total variance, from the experts' means and variances."""
    COPY = "copy"
    """Taken from the base as it is."""


@dataclass(frozen=True)
class Row:
    """One tensor of the plan; ``reason`` says why it is not simply left to the method."""

    name: str
    spec: TensorSpec
    role: Role
    treatment: Treatment
    reason: str = ""


@dataclass(frozen=True)
class MergePlan:
    """Everything that is decided about a merge.

    Attributes:
        template: checkpoint whose configuration and tensors that are copied the output takes: the base, or the first
            expert when there is none.
        base: the base model, or None.
        experts: the experts, in the order of their weights.
        method: the method with its parameters.
        rows: one per tensor, in the order of the template; tied names are left out.
        ties: names that share another tensor's data, with the name that owns it.
        warnings: what the user should know.
        batch_norm, dtype: the options of :func:`plan_merge`.
    """

    template: Checkpoint
    base: Checkpoint | None
    experts: Sequence[Checkpoint]
    method: Method
    rows: Sequence[Row]
    ties: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    batch_norm: BatchNorm = "average"
    dtype: torch.dtype | None = None

    @property
    def output_specs(self) -> dict[str, TensorSpec]:
        """Shape and type of every tensor of the output, tied names left out."""
        return {row.name: TensorSpec(row.spec.shape, self.output_dtype(row)) for row in self.rows}

    def output_dtype(self, row: Row) -> torch.dtype:
        """Type in which a tensor is written: the template's, or the one asked for."""
        keep = self.dtype is None or not row.spec.dtype.is_floating_point or row.role is Role.PREPROCESSOR
        return row.spec.dtype if keep or self.dtype is None else self.dtype

    def decisions(self) -> dict[str, dict[str, int]]:
        """Number of tensors by treatment and role."""
        counts = Counter((row.treatment.value, row.role.value) for row in self.rows)
        table: dict[str, dict[str, int]] = {}
        for (treatment, role), count in sorted(counts.items()):
            table.setdefault(treatment, {})[role] = count
        return table


def plan_merge(
    base: Checkpoint | None,
    experts: Sequence[Checkpoint],
    method: Method,
    *,
    batch_norm: BatchNorm = "average",
    dtype: str | None = None,
    workers: int | None = None,
) -> MergePlan:
    """Plans a merge: reads headers and values, decides, and reports all problems at once.

    Args:
        base: the model that the experts were trained from; None for methods that need none.
        experts: fine-tuned models with the same tensors.
        method: merging method.
        batch_norm: what happens to running statistics. ``average`` takes the experts' mean, ``pooled`` the statistics
            of their pooled data (law of total variance), ``base`` leaves the base's.
        dtype: type of the merged weights (``float32``, ``float16``, ``bfloat16``, ``float64``); the base's by default.
        workers: threads; the number of cores by default.

    Raises:
        PlanError: with every problem found: missing, additional or differently shaped tensors, other model classes,
            tokenizers or architectures, values that are not finite, negative variances, too few experts.
        ConfigError: an option that does not exist, or another number of weights than experts.
    """
    if batch_norm not in get_args(BatchNorm):
        raise ConfigError(
            f"batch_norm={batch_norm!r} does not exist{did_you_mean(str(batch_norm), get_args(BatchNorm))}"
        )
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r} does not exist{did_you_mean(str(dtype), DTYPES)}")
    problems = _check_counts(base, experts, method)
    if problems:
        raise PlanError(problems)
    method.resolved_weights(len(experts))
    template = base if base is not None else experts[0]
    others = experts if base is not None else experts[1:]
    warnings: list[str] = []
    compare_headers(template, others, problems, warnings)
    scans = _scan(template, experts, workers)
    for scan in scans.values():
        problems.extend(scan.problems)
    if problems:
        raise PlanError(problems)
    if not any(scan.changed for scan in scans.values()):
        warnings.append("no expert differs from the base: the output will be a copy of it")
    scale = method.resolved_scale(len(experts))
    rows = [
        _decide(name, template.specs[name], scans[name], method, batch_norm, scale)
        for name in template.specs
        if name not in template.ties
    ]
    return MergePlan(
        template,
        base,
        list(experts),
        method,
        rows,
        dict(template.ties),
        warnings,
        batch_norm,
        DTYPES[dtype] if dtype else None,
    )


def _check_counts(base: Checkpoint | None, experts: Sequence[Checkpoint], method: Method) -> list[str]:
    needed = method.minimum_experts
    problems = []
    if len(experts) < needed:
        problems.append(f"{method.name} needs {needed} or more experts, but {len(experts)} are given")
    needs_base = method.requires_base or (experts and method.resolved_scale(len(experts)) != 1)
    if base is None and needs_base:
        problems.append(f"{method.name} works on task vectors and needs a base; pass base=")
    return problems


def _scan(template: Checkpoint, experts: Sequence[Checkpoint], workers: int | None) -> dict[str, Scan]:
    names = [name for name in template.specs if name not in template.ties]
    with single_threaded_torch(), ThreadPoolExecutor(workers or default_workers()) as pool:
        results = pool.map(lambda name: scan_tensor(name, template, experts), names)
        return dict(zip(names, results, strict=True))


def _decide(name: str, spec: TensorSpec, scan: Scan, method: Method, batch_norm: BatchNorm, scale: float) -> Row:
    role = role_of(name, spec.shape, spec.dtype)
    if role is Role.BUFFER:
        return Row(name, spec, role, Treatment.COPY, "a counter, not a weight")
    if role is Role.PREPROCESSOR:
        return Row(name, spec, role, Treatment.COPY, "a constant of the feature extractor")
    if not scan.changed:
        return Row(name, spec, role, Treatment.COPY, "the same in all models")
    if scale == 0:
        return Row(name, spec, role, Treatment.COPY, "a scale of 0 merges nothing")
    if role in (Role.BATCH_NORM_MEAN, Role.BATCH_NORM_VARIANCE):
        if batch_norm == "base":
            return Row(name, spec, role, Treatment.COPY, "batch_norm=base")
        if batch_norm == "pooled" and role is Role.BATCH_NORM_VARIANCE:
            return Row(name, spec, role, Treatment.POOLED, "statistics, not weights: law of total variance")
        return Row(
            name, spec, role, Treatment.AVERAGE, "statistics, not weights: arithmetic could make a variance negative"
        )
    if method.merges(role):
        return Row(name, spec, role, Treatment.METHOD)
    return Row(name, spec, role, Treatment.MEAN, f"{method.name} treats matrices only")


def plan_table(plan: MergePlan) -> Any:
    """The plan as a table for the terminal (:class:`rich.table.Table`)."""
    from rich.table import Table

    table = Table("tensor", "shape", "type", "role", "treatment", "reason", box=None, pad_edge=False)
    for row in plan.rows:
        shape = "x".join(map(str, row.spec.shape)) or "scalar"
        dtype = str(row.spec.dtype).removeprefix("torch.")
        table.add_row(row.name, shape, dtype, row.role.value, row.treatment.value, row.reason)
    for alias, owner in plan.ties.items():
        table.add_row(alias, "", "", "", "tied", f"shares the data of {owner}")
    return table
