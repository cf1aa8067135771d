"""What the methods of a plan make of the experts, tensor by tensor: merged task vectors, before ``scale``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..methods import Block, Method, SpectralMethod, TaskVectors
from ..tensors import Depth, depths_of
from .blocks import ModelBlocks, TensorBlocks, compute_dtype, sources
from .factored import by_cores, cores_of
from .parallel import in_threads, single_threaded_torch
from .plan import MergePlan, Row, Treatment

MERGED = (Treatment.METHOD, Treatment.MEAN)
T = TypeVar("T")


def for_every_tensor(
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


class Shared:
    """What tensors need to know of the whole model before any of them can be merged.

    Args:
        plans: variants of one merge.
        workers: threads; the number of cores by default.
    """

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
                tensors.append(blocks_of(plan, row, start=position))
                position += row.spec.numel
        return method.statistics(ModelBlocks(tensors), method.resolved_weights(len(plan.experts))), starts

    def _ratio(self, plan: MergePlan, workers: int | None) -> float:
        """L1 norm of the sum of the task vectors over that of the merged change, by merging once without writing."""

        def norms(index: int) -> tuple[float, float]:
            row = plan.rows[index]
            if row.treatment not in MERGED:
                return 0.0, 0.0
            weights = row.method.resolved_weights(len(plan.experts))
            total = sum(
                float(block.weighted(weights).sum(0).abs().sum(dtype=torch.float64)) for block in blocks_of(plan, row)
            )
            change = 0.0
            for _, _, combined in combined_blocks([plan], [row], self):
                scale = row.method.applied_scale(len(plan.experts))
                change += abs(scale) * float(combined.abs().sum(dtype=torch.float64))
            return total, change

        found = for_every_tensor(plan, norms, workers).values()
        change = sum(part for _, part in found)
        return sum(total for total, _ in found) / change if change else 1.0

    def of(self, places: Sequence[int]) -> Shared:
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


def combined_blocks(
    plans: Sequence[MergePlan], rows: Sequence[Row], shared: Shared
) -> Iterator[tuple[int, Tensor, Tensor]]:
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


def dense_change(plan: MergePlan, row: Row, shared: Shared) -> Float[Tensor, "rows columns"]:
    """The merged task vector of a row, before ``scale``, multiplied out as one matrix in float64."""
    parts = [combined.double().flatten(1) for _, _, combined in combined_blocks([plan], [row], shared)]
    return torch.cat(parts)


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


def _by_blocks(plan: MergePlan, row: Row, shared: Shared) -> Iterator[tuple[Block, Tensor]]:
    """Blocks of the inputs, and what the method (or the treatment) makes of them."""
    if row.treatment is Treatment.COPY:
        tensor = plan.template[row.name]
        for block in TensorBlocks(tensor, [tensor], tensor.dtype):
            yield block, block.base
        return
    weights = row.method.resolved_weights(len(plan.experts))
    if row.treatment in (Treatment.AVERAGE, Treatment.POOLED, Treatment.RECALIBRATED):
        average = _average_statistics(plan, row, weights)
        for block in blocks_of(plan, row, whole=row.treatment is Treatment.POOLED):
            yield block, average(block)
        return
    whole = any(post.needs_matrix(row.role) for post in plan.then)
    if row.treatment is Treatment.MEAN:
        for block in blocks_of(plan, row, whole=whole):
            yield block, row.method.rest(block, weights)
        return
    whole = whole or (row.method.by_row and len(row.spec.shape) < 2)
    blocks = blocks_of(plan, row, start=shared.start(row), whole=whole)
    statistics = shared.statistics(row, blocks, weights)
    for block in blocks:
        yield block, row.method.combine_block(block, weights, statistics)


def blocks_of(plan: MergePlan, row: Row, *, start: int = 0, whole: bool = False) -> TensorBlocks:
    """The inputs of a row as blocks, with the experts' posteriors if its method asks for them."""
    base, experts = plan.template[row.name], sources(plan.template, plan.experts, row.name)
    posteriors = [expert.posterior(row.name) for expert in plan.experts] if row.method.uses_posteriors else ()
    return TensorBlocks(
        base,
        experts,
        compute_dtype([base, *experts]),
        start=start,
        name=row.name,
        whole=whole,
        posteriors=[posterior for posterior in posteriors if posterior is not None],  # the plan saw to it that all are
    )


def _average_statistics(plan: MergePlan, row: Row, weights: Float[Tensor, " experts"]) -> Callable[[Block], Tensor]:
    """Averages running statistics with the experts' shares."""
    shares = row.method.shares(weights)

    def average(block: Block) -> Tensor:
        return torch.einsum("t...,t->...", block.experts, shares.to(block.experts))

    def pool(block: Block) -> Tensor:
        name = row.name.removesuffix("running_var") + "running_mean"
        means = torch.stack([expert[name].to(block.experts) for expert in plan.experts])
        portion = shares.to(block.experts)
        mean = torch.einsum("t...,t->...", means, portion)
        return average(block) + torch.einsum("t...,t->...", (means - mean).square(), portion)

    return pool if row.treatment is Treatment.POOLED else average
