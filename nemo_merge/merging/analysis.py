"""Measures task vectors: how far experts moved, in which directions, and where they get in each other's way."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ..checkpoints import Checkpoint, TensorSpec
from ..errors import ConfigError
from ..methods import get
from ..tensors import GROUPS, MATRIX_LIKE, Depth, Role, depths_of, groups_of
from .measures import Interference, Measures, Signs, Spectrum, measure_entries, measure_matrices, measure_tall, pairs
from .parallel import in_threads
from .plan import MergePlan, Row, plan_merge
from .progress import Progress
from .statistics import Drift, drifts

_STATISTICS = frozenset({Role.BATCH_NORM_MEAN, Role.BATCH_NORM_VARIANCE})
_TALL = frozenset({Role.EMBEDDING, Role.HEAD})
_NOT_MEASURED = frozenset({Role.BUFFER, Role.PREPROCESSOR})


@dataclass(frozen=True)
class TensorAnalysis:
    """One tensor: what it is and what was measured.

    Attributes:
        module: the part of the model that it belongs to, one of :data:`~nemo_merge.tensors.GROUPS`; ``head`` wins.
        depth: its block, when it belongs to a stack of them.
        changed: whether any expert differs from the base.
    """

    name: str
    spec: TensorSpec
    role: Role
    module: str
    depth: Depth | None
    changed: bool
    measures: Measures

    @property
    def norms(self) -> Float[Tensor, " experts"]:
        """Norms of the task vectors."""
        return self.measures.gram.diagonal().sqrt()

    @property
    def weights(self) -> bool:
        """Whether it is trained, and so counts in sums over tensors; running statistics are measured beside them."""
        return self.role not in _STATISTICS


@dataclass(frozen=True)
class Part:
    """Several tensors taken together as one long vector.

    Attributes:
        tensors: the tensors.
        elements: number of their entries.
        base: norm of the base.
        gram: inner products of the task vectors.
        signs, top_signs: signs of all entries, and of the largest of each expert in each tensor.
    """

    tensors: Sequence[TensorAnalysis]
    elements: int
    base: float
    gram: Float[Tensor, "experts experts"]
    signs: Signs
    top_signs: Signs

    @property
    def norms(self) -> Float[Tensor, " experts"]:
        """Norms of the task vectors."""
        return self.gram.diagonal().sqrt()

    @property
    def relative_norms(self) -> Float[Tensor, " experts"]:
        """Norms of the task vectors over that of the base."""
        return self.norms / self.base if self.base else torch.full_like(self.norms, torch.nan)

    @property
    def cosines(self) -> Float[Tensor, "experts experts"]:
        """Cosines between task vectors; NaN for experts that do not differ from the base."""
        return (self.gram / torch.outer(self.norms, self.norms)).clamp(-1, 1)

    @property
    def mean_cosine(self) -> float:
        """Mean cosine over the pairs of experts that differ from the base; NaN without such a pair."""
        cosines = self.cosines
        return _mean([float(cosines[i, j]) for i, j in pairs(len(cosines)) if not cosines[i, j].isnan()])

    @property
    def kept_by_mean(self) -> Float[Tensor, " experts"]:
        """Share of each task vector, along itself, that the mean of all task vectors keeps: 1/T if orthogonal."""
        return self.gram.mean(1) / self.gram.diagonal()

    @property
    def spectra(self) -> list[tuple[TensorAnalysis, int, Spectrum]]:
        """Tensor, expert and spectrum, of task vectors that are not zero."""
        return [
            (tensor, expert, found)
            for tensor in self.tensors
            for expert, found in enumerate(tensor.measures.spectra)
            if found.rank_90
        ]

    @property
    def interference(self) -> list[Interference]:
        """Of all matrices that an expert changes."""
        found = [tensor.measures.interference for tensor in self.tensors if tensor.changed]
        return [value for value in found if value is not None]

    def mean_spectrum(self, measure: Callable[[TensorAnalysis, Spectrum], float]) -> float:
        """The mean over tensors and experts of something told from a spectrum; NaN if there is none."""
        return _mean([measure(tensor, found) for tensor, _, found in self.spectra])

    def mean_interference(self, measure: Callable[[Interference], float]) -> float:
        """The mean over matrices of something told from their interference; NaN if there is none."""
        return _mean([measure(found) for found in self.interference])


@dataclass(frozen=True)
class Analysis:
    """What was measured of a base and its experts.

    Attributes:
        base: the base.
        experts: the experts, in the order of all lists and matrices.
        tensors: in the order of the base; counters and constants of the feature extractor are left out.
        rank_fraction: share of the singular triplets that STI and overlap look at.
        drifts: batch normalisation's statistics.
        warnings: what the checks of a merge plan warn of.
    """

    base: Checkpoint
    experts: Sequence[Checkpoint]
    tensors: Sequence[TensorAnalysis]
    rank_fraction: float
    drifts: Sequence[Drift] = ()
    warnings: Sequence[str] = field(default_factory=tuple)

    @cached_property
    def trained(self) -> list[TensorAnalysis]:
        """Tensors that are trained: all but running statistics."""
        return [tensor for tensor in self.tensors if tensor.weights]

    @cached_property
    def total(self) -> Part:
        """All that is trained."""
        return self._part(self.trained)

    def by(self, key: Callable[[TensorAnalysis], Hashable | None]) -> dict[Hashable, Part]:
        """Trained tensors grouped by a key, in the order in which keys come first; without those with key None."""
        groups: dict[Hashable, list[TensorAnalysis]] = {}
        for tensor in self.trained:
            value = key(tensor)
            if value is not None:
                groups.setdefault(value, []).append(tensor)
        return {value: self._part(members) for value, members in groups.items()}

    @cached_property
    def modules(self) -> dict[Hashable, Part]:
        """By module, in the order of :data:`~nemo_merge.tensors.GROUPS`."""
        return dict(sorted(self.by(lambda tensor: tensor.module).items(), key=lambda item: GROUPS.index(str(item[0]))))

    @cached_property
    def roles(self) -> dict[Hashable, Part]:
        """By role."""
        return self.by(lambda tensor: tensor.role.value)

    @cached_property
    def depths(self) -> dict[str, dict[int, Part]]:
        """By stack of blocks, encoders first, and by block from the first to the last."""
        members: dict[str, dict[int, list[TensorAnalysis]]] = {}
        for tensor in sorted(self.trained, key=lambda tensor: GROUPS.index(tensor.module)):
            if tensor.depth:
                members.setdefault(tensor.depth.stack, {}).setdefault(tensor.depth.block, []).append(tensor)
        return {
            stack: {block: self._part(members[stack][block]) for block in sorted(members[stack])} for stack in members
        }

    def _part(self, tensors: Sequence[TensorAnalysis]) -> Part:
        experts = len(self.experts)
        signs, top_signs = Signs.none(experts), Signs.none(experts)
        gram = torch.zeros(experts, experts, dtype=torch.float64)
        for tensor in tensors:
            gram += tensor.measures.gram
            signs += tensor.measures.signs
            top_signs += tensor.measures.top_signs
        base = sum(tensor.measures.base for tensor in tensors) ** 0.5
        return Part(tensors, sum(tensor.spec.numel for tensor in tensors), base, gram, signs, top_signs)


def measure(
    base: Checkpoint | None,
    experts: Sequence[Checkpoint],
    *,
    rank: float | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Analysis:
    """Measures the task vectors of experts, tensor by tensor; nothing depends on the number of threads.

    Memory is a few copies of the largest matrix per thread. Matrices and pointwise convolutions get one SVD per
    expert, which spectra and interference share; embeddings and heads only spectra, from Gram matrices of their
    shorter side.

    Args:
        base: the model that the experts were fine-tuned from.
        experts: the fine-tuned models.
        rank: share of the singular triplets of each matrix that interference looks at; by default one over the number
            of experts, as in TSV-M, and at most a half.
        workers: threads; the number of cores by default.
        progress: called from the threads with the bytes of the base that are done.

    Raises:
        PlanError: everything that would stand against a merge.
        ConfigError: there is no base or no expert, or ``rank`` is not in (0, 1].
    """
    if base is None:
        raise ConfigError("analyze measures task vectors and needs a base; pass base=")
    if not experts:
        raise ConfigError("analyze needs one or more experts; pass experts=")
    if rank is not None and not 0 < rank <= 1:
        raise ConfigError(f"rank={rank!r} is out of range: it is the share of singular triplets, 0 < x <= 1")
    fraction = 1 / max(2, len(experts)) if rank is None else float(rank)
    plan = plan_merge(base, experts, get("task_arithmetic"), workers=workers)
    rows = [row for row in plan.rows if row.role not in _NOT_MEASURED]
    depths = depths_of(base.specs)

    def task(index: int) -> TensorAnalysis:
        found = _measure(plan, rows[index], depths.get(rows[index].name), fraction)
        if progress is not None:
            progress(rows[index].spec.nbytes)
        return found

    def cost(index: int) -> tuple[bool, int]:
        return rows[index].role not in MATRIX_LIKE | _TALL, -rows[index].spec.numel

    tensors = in_threads(len(rows), task, cost, workers)
    statistics = [row.name for row in rows if row.role in _STATISTICS]
    return Analysis(base, experts, tensors, fraction, drifts(base, experts, statistics), plan.warnings)


def _measure(plan: MergePlan, row: Row, depth: Depth | None, fraction: float) -> TensorAnalysis:
    base, experts = plan.template[row.name], [expert[row.name] for expert in plan.experts]
    found = measure_entries(row.name, base, experts, rows=row.role in _TALL)
    changed = bool(found.gram.diagonal().any())
    if changed and row.role in MATRIX_LIKE | _TALL:
        found.rank = max(1, int(fraction * min(row.spec.shape[0], base[0].numel()) + 1e-9))
        if row.role in MATRIX_LIKE:
            found.spectra, found.interference = measure_matrices(base, experts, found.rank)
        else:
            found.spectra = measure_tall(base, experts, found.rank)
    groups = groups_of(row.name, row.role)
    module = "head" if "head" in groups else next(iter(groups))
    return TensorAnalysis(row.name, row.spec, row.role, module, depth, changed, found)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
