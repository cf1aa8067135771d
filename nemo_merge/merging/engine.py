"""Carries plans out: tensor by tensor, in several threads, with the same bytes whatever their number."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..checkpoints import Writer
from ..errors import MergeError
from ..methods import Block, Method, Place, SpectralMethod, TaskVectors
from ..methods._blocks import storage_noise
from ..methods.soup import normalised
from ..tensors import Depth, Role, depths_of
from .blocks import ModelBlocks, TensorBlocks, compute_dtype, sources
from .factored import by_cores, cores_of
from .parallel import in_threads, single_threaded_torch
from .plan import MergePlan, Row, Treatment
from .progress import Progress

ROUNDING_WARNING = 0.1
"""Share of the merged change that may be lost by rounding to the output type before the user is told."""

_MERGED = (Treatment.METHOD, Treatment.MEAN)
T = TypeVar("T")


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
    shared = _Shared(plans, workers)
    execution = [Execution() for _ in plans]

    finished = [writer.finished for writer in writers]

    def merge(index: int) -> list[Rounding | None]:
        return _merge_tensor(plans, index, shared, writers, finished, progress)

    for index, roundings in _for_every_tensor(plans[0], merge, workers, only).items():
        for plan, result, rounding in zip(plans, execution, roundings, strict=True):
            if rounding is not None:
                total = result.rounding.setdefault(plan.output_dtype(plan.rows[index]), Rounding())
                total.lost += rounding.lost
                total.change += rounding.change
    return execution


def _for_every_tensor(
    plan: MergePlan, task: Callable[[int], T], workers: int | None, only: Collection[str] | None = None
) -> dict[int, T]:
    """Runs a task for the index of every row in threads, and gives the results in the order of the rows."""
    indices = [index for index, row in enumerate(plan.rows) if only is None or row.name in only]

    def cost(index: int) -> tuple[bool, int]:
        # Matrices of a spectral method take longest: started first, they do not hold up the end.
        row = plan.rows[index]
        return not (isinstance(row.method, SpectralMethod) and row.treatment is Treatment.METHOD), -row.spec.nbytes

    results = in_threads(len(indices), lambda place: task(indices[place]), lambda place: cost(indices[place]), workers)
    return dict(zip(indices, results, strict=True))


class _Shared:
    """What tensors need to know of the whole model."""

    def __init__(self, plans: Sequence[MergePlan], workers: int | None) -> None:
        self.depths: Mapping[str, Depth] = depths_of(plans[0].template.specs)
        self._statistics: dict[Method, tuple[Any, dict[str, int]]] = {}
        with single_threaded_torch():
            for plan in plans:
                for method in {row.method for row in plan.rows if row.treatment is Treatment.METHOD}:
                    if method.whole_model and method.early() not in self._statistics:
                        self._statistics[method.early()] = self._look(plan, method)
        self.ratios = [1.0] * len(plans)
        for place, plan in enumerate(plans):
            if any(post.needs_ratio for post in plan.then):
                self.ratios[place] = self._ratio(plan, workers)

    @staticmethod
    def _look(plan: MergePlan, method: Method) -> tuple[Any, dict[str, int]]:
        """Statistics of a method over all tensors that it merges, and where each of them starts."""
        starts, tensors, position = {}, [], 0
        for row in plan.rows:
            if row.treatment is Treatment.METHOD and row.method.early() == method.early():
                starts[row.name] = position
                tensors.append(_blocks(plan, row, start=position))
                position += row.spec.numel
        return method.statistics(ModelBlocks(tensors), method.resolved_weights(len(plan.experts))), starts

    def _ratio(self, plan: MergePlan, workers: int | None) -> float:
        """L1 norm of the sum of the task vectors over that of the merged change, by merging once without writing."""

        def norms(index: int) -> tuple[float, float]:
            row = plan.rows[index]
            if row.treatment not in _MERGED:
                return 0.0, 0.0
            weights = row.method.resolved_weights(len(plan.experts))
            total = sum(
                float(block.weighted(weights).sum(0).abs().sum(dtype=torch.float64)) for block in _blocks(plan, row)
            )
            change = 0.0
            for _, _, combined in _combined([plan], [row], self):
                scale = row.method.applied_scale(len(plan.experts))
                change += abs(scale) * float(combined.abs().sum(dtype=torch.float64))
            return total, change

        found = _for_every_tensor(plan, norms, workers).values()
        change = sum(part for _, part in found)
        return sum(total for total, _ in found) / change if change else 1.0

    def of(self, places: Sequence[int]) -> _Shared:
        """The same for some of the plans."""
        part = copy.copy(self)
        part.ratios = [self.ratios[place] for place in places]
        return part

    def statistics(self, row: Row, blocks: TensorBlocks, weights: Tensor) -> Any:
        if row.method.whole_model:
            return self._statistics[row.method.early()][0]
        return row.method.statistics(blocks, weights)

    def start(self, row: Row) -> int:
        """Where the tensor starts for its method: in the model, or in itself."""
        return self._statistics[row.method.early()][1][row.name] if row.method.whole_model else 0


def _merge_tensor(
    plans: Sequence[MergePlan],
    index: int,
    shared: _Shared,
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
        for place, base, combined in _combined(plans, rows, shared):
            plan, row, dtype, rounding = plans[place], rows[place], types[place], roundings[place]
            merged = _finish(plan, row, base, combined, places[place])
            if plan.alignment is not None:
                weights = row.method.resolved_weights(len(plan.experts)).tolist()
                merged = plan.alignment.settle(row.name, positions[place], merged, weights)
            values = merged.to(dtype)
            _check(row, values)
            if rounding is not None and row.treatment in _MERGED:
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
    shared: _Shared,
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


def _combined(plans: Sequence[MergePlan], rows: Sequence[Row], shared: _Shared) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For every plan, in order, blocks of the template and what its method makes of the experts there."""
    groups: dict[tuple[Treatment, Method], list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault((row.treatment, row.method.early()), []).append(place)
    for (treatment, _), places in groups.items():
        plan, row = plans[places[0]], rows[places[0]]
        if (cores := cores_of(plan, row)) is not None:
            whole = any(post.needs_matrix(row.role) for post in plan.then)
            yield from by_cores(plan, [(place, rows[place]) for place in places], cores, whole=whole)
            continue
        if treatment is Treatment.METHOD and isinstance(row.method, SpectralMethod):
            yield from _by_spectra(plan, [(place, rows[place]) for place in places])
            continue
        for block, combined in _by_blocks(plan, row, shared):
            for place in places:
                yield place, block.base, combined


def _by_spectra(plan: MergePlan, rows: Sequence[tuple[int, Row]]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Factors once, assembled for every variant of the method."""
    row = rows[0][1]
    base = plan.template[row.name].to(plan.device)
    experts = [expert.to(plan.device) for expert in sources(plan.template, plan.experts, row.name)]
    method = row.method
    assert isinstance(method, SpectralMethod)
    factors = method.factors(TaskVectors(base, experts, method.resolved_weights(len(experts))))
    for place, variant in rows:
        assert isinstance(variant.method, SpectralMethod)
        yield place, base, variant.method.assemble(factors).view(base.shape)


def _by_blocks(plan: MergePlan, row: Row, shared: _Shared) -> Iterator[tuple[Block, Tensor]]:
    """Blocks of the inputs, and what the method (or the treatment) makes of them."""
    if row.treatment is Treatment.COPY:
        tensor = plan.template[row.name]
        for block in TensorBlocks(tensor, [tensor], tensor.dtype):
            yield block, block.base
        return
    weights = row.method.resolved_weights(len(plan.experts))
    if row.treatment in (Treatment.AVERAGE, Treatment.POOLED, Treatment.RECALIBRATED):
        average = _average_statistics(plan, row, weights)
        for block in _blocks(plan, row, whole=row.treatment is Treatment.POOLED):
            yield block, average(block)
        return
    whole = any(post.needs_matrix(row.role) for post in plan.then)
    if row.treatment is Treatment.MEAN:
        for block in _blocks(plan, row, whole=whole):
            yield block, row.method.rest(block, weights)
        return
    whole = whole or (row.method.by_row and len(row.spec.shape) < 2)
    blocks = _blocks(plan, row, start=shared.start(row), whole=whole)
    statistics = shared.statistics(row, blocks, weights)
    for block in blocks:
        yield block, row.method.combine_block(block, weights, statistics)


def _blocks(plan: MergePlan, row: Row, *, start: int = 0, whole: bool = False) -> TensorBlocks:
    base, experts = plan.template[row.name], sources(plan.template, plan.experts, row.name)
    return TensorBlocks(base, experts, compute_dtype([base, *experts]), start=start, name=row.name, whole=whole)


def _place(plan: MergePlan, row: Row, shared: _Shared, ratio: float) -> Place | None:
    """What post-processors are told of a tensor; None where there are none for it."""
    if not plan.then or row.treatment not in _MERGED:
        return None
    experts, noise = len(plan.experts), 0.0
    if any(post.needs_matrix(row.role) for post in plan.then):
        stored = sources(plan.template, plan.experts, row.name)
        noise = storage_noise(plan.template[row.name], stored) * experts**0.5
    return Place(row.name, row.role, shared.depths.get(row.name), shared.depths, ratio, noise, experts)


def _finish(plan: MergePlan, row: Row, base: Tensor, combined: Tensor, place: Place | None) -> Float[Tensor, "*shape"]:
    """The merged rows."""
    if row.treatment not in _MERGED:
        return combined
    if place is not None:
        for post in plan.then:
            combined = post.apply(combined, place)
    return base + row.method.applied_scale(len(plan.experts)) * combined


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


def _check(row: Row, values: Tensor) -> None:
    if values.dtype.is_floating_point and not torch.isfinite(values).all():
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
