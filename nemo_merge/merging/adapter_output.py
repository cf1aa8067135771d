"""Writes what a merge of adapters changes as one adapter: a LoRA folder that PEFT loads onto the base."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checkpoints import CARD, RECORD, AdaptedCheckpoint, TensorSpec, check_output
from ..checkpoints._work import WorkFolder, key_of
from ..checkpoints._yaml import dump
from ..checkpoints.adapter import MODEL
from ..checkpoints.huggingface import lay_out
from ..errors import ConfigError, MergeError, PlanError
from ..linalg import thin_svd
from ..low_rank import Cores, LowRank
from ..methods.emr import Emr
from .card import model_card
from .combine import MERGED, Shared, dense_change
from .factored import cores_of, factored_changes
from .parallel import default_workers, single_threaded_torch
from .plan import MergePlan, Row, Treatment
from .ranks import Ranks

if TYPE_CHECKING:
    from .api import Options

LOST_WARNING = 1e-3
"""Share of the merged change, in the Frobenius norm, that a cut of the rank may lose before the user is told."""

_EXACT = 1e-10
"""Singular values below this share of the largest are rounding: they do not count towards the exact rank."""


def check_as_adapter(value: bool | int | None, ranks: Ranks) -> None:
    """Checks the option ``as_adapter``: nothing, True for the exact rank, or the largest rank.

    Raises:
        ConfigError: something else, or the merge is shared among processes.
    """
    if value is None or value is False:
        return
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"as_adapter={value!r} is neither true (the exact rank) nor a rank of 1 or more")
    if ranks.count > 1:
        raise ConfigError("as_adapter takes seconds and runs in one process; leave torchrun out")


def write_adapters(
    outputs: Sequence[Path],
    plans: Sequence[MergePlan],
    records: Sequence[dict[str, Any]],
    as_adapter: bool | int,
    options: Options,
    check: Callable[[], None],
) -> list[list[str]]:
    """Writes one adapter per plan; none appears before all are computed and ``check`` passed. The warnings of each."""
    rank = None if as_adapter is True else int(as_adapter)
    with ExitStack() as stack:
        adapters = [
            stack.enter_context(
                AdapterOutput(output, plan, rank, known, overwrite=options.overwrite, workers=options.workers)
            )
            for output, plan, known in zip(outputs, plans, records, strict=True)
        ]
        check()
        warnings = [[*plan.warnings, *adapter.warnings] for plan, adapter in zip(plans, adapters, strict=True)]
        for output, plan, known, adapter, some in zip(outputs, plans, records, adapters, warnings, strict=True):
            adapter.commit({CARD: model_card(output, known, plan, some)})
    return warnings


@dataclass(frozen=True)
class _Layer:
    """The merged change of one layer, of the rank that is written."""

    name: str
    kind: str
    shape: tuple[int, ...]
    change: LowRank
    lost: float
    total: float

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")

    def tensors(self) -> dict[str, Tensor]:
        """The factors under PEFT's names, in PEFT's shapes."""
        left, right = self.change.left, self.change.right
        prefix = f"base_model.model.{self.module}"
        if self.kind == "embedding":
            return {f"{prefix}.lora_embedding_A": left.mT, f"{prefix}.lora_embedding_B": right.mT}
        if self.kind == "transposed":
            left, right = right.mT, left.mT
        kernel = self.shape[2:] if self.kind == "conv" else ()
        return {
            f"{prefix}.lora_A.weight": right.reshape(len(right), -1, *kernel),
            f"{prefix}.lora_B.weight": left.reshape(*left.shape, *[1] * len(kernel)),
        }


class AdapterOutput:
    """Merges adapters into one; a context manager that leaves nothing without :meth:`commit`.

    All factors are in memory until they are written: a few percent of the model for the usual ranks. What a method that
    looks at single entries gives is multiplied out before it is cut, one tensor per thread at a time.

    Args:
        output: the folder to be made.
        plan: the merge.
        rank: the largest rank; None keeps the change exactly, with at most the sum of the experts' ranks, which takes a
            method that is rotation-equivariant.
        record: provenance, which becomes ``merge.yaml`` in the folder.
        overwrite: replace an output that exists.
        workers: threads; the number of cores by default.

    Raises:
        PlanError: the merged change is not of low rank, or PEFT has no form for it; every reason is listed.
        MergeError: a factor is not finite.
        OutputError: the output exists or cannot be written.
    """

    def __init__(
        self,
        output: Path,
        plan: MergePlan,
        rank: int | None,
        record: Mapping[str, Any],
        *,
        overwrite: bool = False,
        workers: int | None = None,
    ) -> None:
        if output.suffix == ".nemo":
            raise ConfigError(f"{output}: with as_adapter the output is a folder; choose another name")
        check_output(output, overwrite)
        self._record = record
        self._plan = plan
        cores = self._check(plan, rank)
        shared = Shared([plan], workers)

        def layer(row: Row) -> _Layer:
            return _layer(plan, row, cores[row.name], shared, rank)

        with single_threaded_torch(), ThreadPoolExecutor(workers or default_workers()) as pool:
            self._layers = list(pool.map(layer, self._rows(plan)))
        self._layers = [layer for layer in self._layers if layer.change.rank]
        if not self._layers:
            raise PlanError(["the merge changes nothing, so there is no adapter to write"])
        lost, total = (sum(getattr(layer, key) for layer in self._layers) for key in ("lost", "total"))
        share = (lost / total) ** 0.5 if total else 0.0
        self.warnings: list[str] = []
        if share > LOST_WARNING:
            exact = all(found is not None for found in cores.values())
            self.warnings.append(
                f"an adapter of rank {rank} loses {share:.1%} of the merged change (Frobenius norm); "
                + ("pass as_adapter=true to keep all of it" if exact else "a larger rank loses less")
            )
        tensors = {name: tensor.float() for layer in self._layers for name, tensor in layer.tensors().items()}
        broken = next((name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())), None)
        if broken is not None:
            raise MergeError(f"tensor {broken!r}: not finite in float32; nothing was written, use a smaller scale")
        self._work = WorkFolder(output, key_of(record))
        try:
            specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
            file = self._work.add(MODEL, lay_out(specs, {"format": "pt"}))
            for name, tensor in tensors.items():
                if name not in file.finished:
                    file.write(name, 0, tensor.contiguous())
        except BaseException:
            self._work.discard()
            raise

    def commit(self, documents: Mapping[str, str] = MappingProxyType({})) -> None:
        """Gives the folder its name, with configuration and record."""
        small: dict[str, bytes | Path] = {
            "adapter_config.json": (json.dumps(self._config(), indent=2) + "\n").encode(),
            RECORD: dump(self._record).encode(),
            **{name: text.encode() for name, text in documents.items()},
        }
        self._work.publish_folder(small)

    def __enter__(self) -> AdapterOutput:
        return self

    def __exit__(self, *_: object) -> None:
        self._work.discard()

    @staticmethod
    def _rows(plan: MergePlan) -> list[Row]:
        return [row for row in plan.rows if row.treatment is not Treatment.COPY]

    def _check(self, plan: MergePlan, rank: int | None) -> dict[str, Cores | None]:
        """The cores of every row that is merged; None where it can only be multiplied out and cut."""
        problems = list(_unfit(plan))
        cores = {}
        for row in self._rows(plan):
            cores[row.name] = cores_of(plan, row)
            if cores[row.name] is None and (why := _why(plan, row, rank)):
                problems.append(f"tensor {row.name!r}: {why}leave as_adapter out to write a whole model")
        if not problems and len({kind == "transposed" for kind in self._kinds(plan) if kind != "embedding"}) > 1:
            problems.append("some layers are stored [in, out] and some [out, in], for which one adapter has no setting")
        if problems:
            raise PlanError(problems)
        return cores

    def _kinds(self, plan: MergePlan) -> Iterator[str]:
        return (_kind(plan, row) for row in self._rows(plan))

    def _config(self) -> dict[str, Any]:
        ranks = {layer.module: layer.change.rank for layer in self._layers}
        largest = max(ranks.values())
        patterns = {f"^{re.escape(module)}": rank for module, rank in ranks.items() if rank != largest}
        return {
            "peft_type": "LORA",
            "base_model_name_or_path": str(self._plan.template.path),
            "task_type": None,
            "inference_mode": True,
            "r": largest,
            "lora_alpha": largest,
            "rank_pattern": patterns,
            "alpha_pattern": patterns,
            "target_modules": self._targets(list(ranks)),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": any(layer.kind == "transposed" for layer in self._layers),
            "init_lora_weights": True,
        }

    def _targets(self, modules: list[str]) -> list[str] | str:
        """Names of the modules; as one pattern where PEFT would take a name for the end of another module's."""
        others = {name.removesuffix(".weight") for name in self._plan.template.specs} - set(modules)
        if any(other.endswith(f".{module}") for other in others for module in modules):
            return "|".join(map(re.escape, modules))
        return modules


def _layer(plan: MergePlan, row: Row, cores: Cores | None, shared: Shared, rank: int | None) -> _Layer:
    """The merged change of a row, cut to the rank, as balanced factors."""
    if cores is None:
        u, s, vt = thin_svd(dense_change(plan, row, shared), rank)
    else:
        (_, change) = next(factored_changes(plan, [(0, row)], cores))
        if change.of_base:
            raise PlanError([
                f"tensor {row.name!r}: {row.method.name} changes the base's direction, which is not of low rank; "
                "pass method.space=task_vectors, or leave as_adapter out to write a whole model"
            ])  # fmt: skip
        q, small = torch.linalg.qr(change.matrix.left)
        u, s, vt = torch.linalg.svd(small @ change.matrix.right, full_matrices=False)
        u = q @ u
    scale = row.method.applied_scale(len(plan.experts))
    s = s * abs(scale)
    exact = int((s > _EXACT * s[:1]).sum())
    kept = exact if rank is None else min(exact, rank)
    root = s[:kept].sqrt()
    sign = -1.0 if scale < 0 else 1.0
    factors = LowRank(u[:, :kept] * (sign * root), root[:, None] * vt[:kept])
    squares = s.square()
    return _Layer(
        row.name, _kind(plan, row), row.spec.shape, factors, float(squares[kept:].sum()), float(squares.sum())
    )


def _kind(plan: MergePlan, row: Row) -> str:
    """The kind of layer, from an adapter that changes it."""
    kinds = (expert.changes[row.name].kind for expert in _adapted(plan) if row.name in expert.changes)
    return next(kinds, "linear")


def _adapted(plan: MergePlan) -> list[AdaptedCheckpoint]:
    return [expert for expert in plan.experts if isinstance(expert, AdaptedCheckpoint)]


def _unfit(plan: MergePlan) -> Iterator[str]:
    for expert in plan.experts:
        if not isinstance(expert, AdaptedCheckpoint):
            yield f"{expert.path}: is a whole model, so the merged change is not of low rank; leave as_adapter out"
    if isinstance(plan.method, Emr):
        yield "emr leaves a package that belongs to a whole model; leave as_adapter out"
    if plan.then:
        yield "post-processors (then) do not go together with as_adapter; leave one of them out"


def _why(plan: MergePlan, row: Row, rank: int | None) -> str:
    """Why a row cannot be part of an adapter, as the beginning of a sentence; empty where it can."""
    for expert in _adapted(plan):
        change = expert.changes.get(row.name)
        if change is not None and change.factors is None:
            return f"{expert.path} changes it otherwise than by LoRA ({change.kind}); "
    if rank is not None and row.treatment in MERGED and len(row.spec.shape) > 1:
        return ""
    return (
        f"{row.method.name} with these parameters looks at single entries, so its result is not of low rank; pass a "
        "rank (as_adapter=16) to cut it to that, or "
    )
