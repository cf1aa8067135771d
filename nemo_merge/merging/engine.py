"""Carries a plan out: tensor by tensor, in several threads, with the same bytes whatever their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..checkpoints import Writer
from ..errors import MergeError
from ..methods import Block, Method, SpectralMethod
from ..methods._method import mean_of_task_vectors
from ..methods.soup import normalised
from ..tensors import Role
from .blocks import ModelBlocks, TensorBlocks, compute_dtype
from .parallel import default_workers, single_threaded_torch
from .plan import MergePlan, Row, Treatment

Progress = Callable[[int], None]
"""Called with the number of bytes of output that were finished."""

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


def execute(
    plan: MergePlan, writer: Writer, *, workers: int | None = None, progress: Progress | None = None
) -> Execution:
    """Computes every tensor of the plan and hands it to the writer.

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
    with single_threaded_torch():
        shared = _model_statistics(plan)
        # Matrices of a spectral method take longest: started first, they do not hold up the end.
        spectral = isinstance(plan.method, SpectralMethod)
        rows = sorted(
            plan.rows, key=lambda row: (not (spectral and row.treatment is Treatment.METHOD), -row.spec.nbytes)
        )
        pool = ThreadPoolExecutor(workers or default_workers(), thread_name_prefix="nemo_merge")
        try:
            futures = [pool.submit(_merge_tensor, plan, row, shared, writer, progress) for row in rows]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()  # raises what went wrong in a thread
        finally:
            # After an error or Ctrl-C the tensors still waiting are dropped, so that the user is not kept waiting too.
            pool.shutdown(wait=True, cancel_futures=True)
    execution = Execution()
    for row, rounding in zip(rows, (future.result() for future in futures), strict=True):
        if rounding is not None:
            total = execution.rounding.setdefault(plan.output_dtype(row), Rounding())
            total.lost += rounding.lost
            total.change += rounding.change
    return execution


@dataclass(frozen=True)
class _ModelStatistics:
    """Statistics of a method that looks at the whole model, and where each tensor starts in it."""

    statistics: Any
    starts: dict[str, int]


def _model_statistics(plan: MergePlan) -> _ModelStatistics | None:
    if not plan.method.whole_model:
        return None
    starts, tensors, position = {}, [], 0
    for row in plan.rows:
        if row.treatment is Treatment.METHOD:
            starts[row.name] = position
            base, experts = plan.template[row.name], [expert[row.name] for expert in plan.experts]
            tensors.append(TensorBlocks(base, experts, compute_dtype([base, *experts]), start=position))
            position += row.spec.numel
    weights = plan.method.resolved_weights(len(plan.experts))
    return _ModelStatistics(plan.method.statistics(ModelBlocks(tensors), weights), starts)


def _merge_tensor(
    plan: MergePlan, row: Row, shared: _ModelStatistics | None, writer: Writer, progress: Progress | None
) -> Rounding | None:
    dtype = plan.output_dtype(row)
    rounding = Rounding() if dtype.itemsize < 4 and dtype.is_floating_point else None
    position = 0
    for base, merged in _merged_blocks(plan, row, shared):
        values = merged.to(dtype)
        _check(row, values, plan)
        if rounding is not None and row.treatment in (Treatment.METHOD, Treatment.MEAN):
            rounding.lost += float((values.to(merged.dtype) - merged).square().sum())
            rounding.change += float((merged - base).square().sum())
        writer.write(row.name, position, values)
        position += values.numel()
        if progress is not None:
            progress(values.numel() * dtype.itemsize)
    return rounding


def _merged_blocks(plan: MergePlan, row: Row, shared: _ModelStatistics | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of the template and of the result, in order."""
    if row.treatment is Treatment.COPY:
        tensor = plan.template[row.name]
        for block in TensorBlocks(tensor, [tensor], tensor.dtype):
            yield block.base, block.base
        return
    base, experts = plan.template[row.name], [expert[row.name] for expert in plan.experts]
    weights = plan.method.resolved_weights(len(experts))
    if row.treatment is Treatment.METHOD and isinstance(plan.method, SpectralMethod):
        yield base, plan.method.merge_whole(base, experts, weights)
        return
    start = shared.starts[row.name] if shared and row.treatment is Treatment.METHOD else 0
    whole = row.treatment is Treatment.POOLED or (row.treatment is Treatment.METHOD and not plan.method.blockwise)
    blocks = TensorBlocks(base, experts, compute_dtype([base, *experts]), start=start, whole=whole)
    merge = _merger(plan, row, blocks, weights, shared)
    for block in blocks:
        yield block.base, merge(block)


def _merger(
    plan: MergePlan, row: Row, blocks: TensorBlocks, weights: Float[Tensor, " experts"], shared: _ModelStatistics | None
) -> Callable[[Block], Tensor]:
    """What turns a block of this tensor into the merged block."""
    if row.treatment in (Treatment.AVERAGE, Treatment.POOLED):
        return _average_statistics(plan, row, weights)
    if row.treatment is Treatment.MEAN:
        scale = plan.method.resolved_scale(len(plan.experts))
        return lambda block: mean_of_task_vectors(block, weights, scale)
    statistics = shared.statistics if shared else plan.method.statistics(blocks, weights)
    return lambda block: plan.method.merge_block(block, weights, statistics)


def _average_statistics(plan: MergePlan, row: Row, weights: Float[Tensor, " experts"]) -> Callable[[Block], Tensor]:
    """Averages running statistics with the experts' shares; negative weights cannot be shares, then all count alike."""
    shares = (
        normalised(weights)
        if bool((weights >= 0).all()) and bool(weights.any())
        else torch.full_like(weights, 1 / len(weights))
    )

    def average(block: Block) -> Tensor:
        return torch.einsum("t...,t->...", block.experts, shares.to(block.experts))

    def pool(block: Block) -> Tensor:
        name = row.name.removesuffix("running_var") + "running_mean"
        means = torch.stack([expert[name].to(block.experts) for expert in plan.experts])
        portion = shares.to(block.experts)
        mean = torch.einsum("t...,t->...", means, portion)
        return average(block) + torch.einsum("t...,t->...", (means - mean).square(), portion)

    return pool if row.treatment is Treatment.POOLED else average


def _check(row: Row, values: Tensor, plan: MergePlan) -> None:
    if values.dtype.is_floating_point and not torch.isfinite(values).all():
        kind = str(values.dtype).removeprefix("torch.")
        raise MergeError(
            f"tensor {row.name!r}: the merge by {_describe(plan.method)} gives values that do not fit into {kind}; "
            "nothing was written, use a smaller scale or dtype=float32"
        )
    if row.role is Role.BATCH_NORM_VARIANCE and bool((values < 0).any()):
        raise MergeError(
            f"tensor {row.name!r}: the merge gives a negative variance; nothing was written, use batch_norm=average"
        )


def _describe(method: Method) -> str:
    return f"{method.name} (scale {'default' if method.scale is None else method.scale})"
