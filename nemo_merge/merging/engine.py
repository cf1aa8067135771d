"""Carries plans out: tensor by tensor, in several threads, with the same bytes whatever their number."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ..checkpoints import Writer
from ..errors import MergeError
from ..methods import Method, Place
from ..methods._blocks import storage_noise
from ..tensors import Role
from .blocks import sources
from .combine import MERGED, Shared, combined_blocks, for_every_tensor
from .plan import MergePlan, Row
from .progress import Progress
from .scan import non_finite

ROUNDING_WARNING = 0.1
"""Share of the merged change that may be lost by rounding to the output type before the user is told."""


@dataclass
class Rounding:
    """How much of the change the cast to the output type lost, as sums of squares."""

    lost: float = 0.0
    change: float = 0.0

    @property
    def share(self) -> float:
        """Norm of the rounding error over the norm of the change."""
        return (self.lost / self.change) ** 0.5 if self.change else 0.0


@dataclass
class Execution:
    """What carrying out a plan showed: rounding by output type."""

    rounding: dict[torch.dtype, Rounding] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: Iterable[Execution]) -> Execution:
        """What several processes saw that shared a plan."""
        whole = cls()
        for part in parts:
            for dtype, rounding in part.rounding.items():
                total = whole.rounding.setdefault(dtype, Rounding())
                total.lost += rounding.lost
                total.change += rounding.change
        return whole


def execute(
    plan: MergePlan, writer: Writer, *, workers: int | None = None, progress: Progress | None = None
) -> Execution:
    """Computes every tensor of the plan and hands it to the writer.

    Tensors that the writer has from an interrupted run (:attr:`Writer.finished`) are left out.

    Memory is a few blocks per thread for methods that work entry by entry, and a few copies of the largest matrix for
    spectral ones. Each tensor is computed by one thread with one BLAS thread, so that the result is the same to the
    bit whatever ``workers`` is.

    Args:
        plan: what to do.
        writer: where results go; the caller commits it.
        workers: threads; the number of cores by default.
        progress: called from the threads.

    Raises:
        MergeError: a result is not finite, or a variance came out negative.
        OutputError: the writer failed.
    """
    return execute_variants([plan], [writer], workers=workers, progress=progress)[0]


def execute_variants(
    plans: Sequence[MergePlan],
    writers: Sequence[Writer],
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    only: Collection[str] | None = None,
) -> list[Execution]:
    """Carries out several plans for the same inputs (:func:`plan_variants`) together.

    Methods that differ in ``late`` parameters only, such as ``scale`` and ``beta``, share their expensive part; every
    result is the same to the bit as by :func:`execute`. Arguments and errors are those of :func:`execute`; ``only``
    names the tensors to compute where other processes compute the rest.
    """
    shared = Shared(plans, workers)
    execution = [Execution() for _ in plans]

    finished = [writer.finished for writer in writers]

    def merge(index: int) -> list[Rounding | None]:
        return _merge_tensor(plans, index, shared, writers, finished, progress)

    for index, roundings in for_every_tensor(plans[0], merge, workers, only).items():
        for plan, result, rounding in zip(plans, execution, roundings, strict=True):
            if rounding is not None:
                total = result.rounding.setdefault(plan.output_dtype(plan.rows[index]), Rounding())
                total.lost += rounding.lost
                total.change += rounding.change
    return execution


def _merge_tensor(
    plans: Sequence[MergePlan],
    index: int,
    shared: Shared,
    writers: Sequence[Writer],
    finished: Sequence[set[str]],
    progress: Progress | None,
) -> list[Rounding | None]:
    rows = [plan.rows[index] for plan in plans]
    if any(row.name in done for row, done in zip(rows, finished, strict=True)):
        return _merge_rest(plans, index, shared, writers, finished, progress)
    types = [plan.output_dtype(row) for plan, row in zip(plans, rows, strict=True)]
    roundings = [Rounding() if dtype.itemsize < 4 and dtype.is_floating_point else None for dtype in types]
    positions = [0] * len(plans)
    places = [_place(plan, row, shared, ratio) for plan, row, ratio in zip(plans, rows, shared.ratios, strict=True)]
    try:
        for place, base, combined in combined_blocks(plans, rows, shared):
            plan, row, dtype, rounding = plans[place], rows[place], types[place], roundings[place]
            merged = _finish(plan, row, base, combined, places[place])
            if plan.alignment is not None:
                weights = row.method.resolved_weights(len(plan.experts)).tolist()
                merged = plan.alignment.settle(row.name, positions[place], merged, weights)
            values = merged.to(dtype)
            _check(row, values)
            if rounding is not None and row.treatment in MERGED:
                rounding.lost += float((values.to(merged.dtype) - merged).square().sum())
                rounding.change += float((merged - base).square().sum())
            writers[place].write(row.name, positions[place], values)
            positions[place] += values.numel()
            if progress is not None:
                progress(values.numel() * dtype.itemsize)
    except MergeError as error:
        name = rows[0].name
        if repr(name) in str(error):
            raise
        raise MergeError(f"tensor {name!r}: {error}; nothing was written") from error
    return roundings


def _merge_rest(
    plans: Sequence[MergePlan],
    index: int,
    shared: Shared,
    writers: Sequence[Writer],
    finished: Sequence[set[str]],
    progress: Progress | None,
) -> list[Rounding | None]:
    """Merges a tensor for those plans only whose writers do not have it yet."""
    name = plans[0].rows[index].name
    places = [place for place, done in enumerate(finished) if name not in done]
    if progress is not None:
        for plan, done in zip(plans, finished, strict=True):
            progress(plan.output_specs[name].nbytes if name in done else 0)
    result: list[Rounding | None] = [None] * len(plans)
    if places:
        part = _merge_tensor(
            [plans[place] for place in places],
            index,
            shared.of(places),
            [writers[place] for place in places],
            [finished[place] for place in places],
            progress,
        )
        for place, rounding in zip(places, part, strict=True):
            result[place] = rounding
    return result


def _place(plan: MergePlan, row: Row, shared: Shared, ratio: float) -> Place | None:
    """What post-processors are told of a tensor; None where there are none for it."""
    if not plan.then or row.treatment not in MERGED:
        return None
    experts, noise = len(plan.experts), 0.0
    if any(post.needs_matrix(row.role) for post in plan.then):
        stored = sources(plan.template, plan.experts, row.name)
        noise = storage_noise(plan.template[row.name], stored) * experts**0.5
    return Place(row.name, row.role, shared.depths.get(row.name), shared.depths, ratio, noise, experts)


def _finish(plan: MergePlan, row: Row, base: Tensor, combined: Tensor, place: Place | None) -> Float[Tensor, "*shape"]:
    """The merged rows."""
    if row.treatment not in MERGED:
        return combined
    if place is not None:
        for post in plan.then:
            combined = post.apply(combined, place)
    return torch.add(base, combined, alpha=row.method.applied_scale(len(plan.experts)))


def _check(row: Row, values: Tensor) -> None:
    if non_finite(values):
        kind = str(values.dtype).removeprefix("torch.")
        raise MergeError(
            f"tensor {row.name!r}: the merge by {_describe(row.method)} gives values that do not fit into {kind}; "
            "nothing was written, use a smaller scale or dtype=float32"
        )
    if row.role is Role.BATCH_NORM_VARIANCE and bool((values < 0).any()):
        raise MergeError(
            f"tensor {row.name!r}: the merge gives a negative variance; nothing was written, use batch_norm=average"
        )


def _describe(method: Method) -> str:
    return f"{method.name} (scale {'default' if method.scale is None else method.scale})"
