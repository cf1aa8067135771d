"""The two calls that most users need: merge files, merge state dicts."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from .. import methods
from ..checkpoints import CARD, RECORD, Checkpoint, StateDictCheckpoint, Writer, check_output, container_for, writer_for
from ..checkpoints._yaml import dump
from ..checkpoints.memory import StateDictWriter
from ..errors import ConfigError, OutputError
from ..methods import Method
from ..methods.emr import Emr
from .adapter_output import check_as_adapter, write_adapters
from .card import model_card
from .distributed import ShardWriter, gather, share_of
from .emr import EmrPackage, package_path
from .engine import ROUNDING_WARNING, Execution, execute, execute_variants
from .inputs import Source, check_unchanged, fingerprints, open_inputs
from .plan import BatchNorm, MergePlan, PlanOptions, Rules, Then, plan_merge, plan_variants
from .progress import Progress, bar
from .provenance import hashing, record
from .ranks import ALONE, Ranks
from .recalibration import Audio, Recalibration, alone
from .vocabulary import VocabularyPolicy

logger = logging.getLogger("nemo_merge")


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        output: the merged checkpoint.
        provenance: the record that it carries.
        tensors: number of tensors by treatment and role.
        warnings: what the user should know.
        seconds: wall-clock time.
    """

    output: Path
    provenance: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, int]]
    warnings: Sequence[str] = field(default_factory=tuple)
    seconds: float = 0.0

    def __str__(self) -> str:
        counts = ", ".join(f"{sum(roles.values())} by {treatment}" for treatment, roles in self.tensors.items())
        return (
            f"{self.output}: merged by {self.provenance['method']['name']} in {self.seconds:.1f} s; tensors: {counts}"
        )


def merge(
    base: Source | None,
    experts: Sequence[Source],
    method: str | Method = "boosted_tsvm",
    *,
    output: str | os.PathLike[str],
    overwrite: bool = False,
    rules: Rules = (),
    then: Then = (),
    batch_norm: BatchNorm = "average",
    audio: Audio | None = None,
    dtype: str | None = None,
    vocabulary: VocabularyPolicy = "strict",
    device: str = "cpu",
    workers: int | None = None,
    progress: bool | None = None,
    ranks: Ranks = ALONE,
    as_adapter: bool | int | None = None,
    **parameters: Any,
) -> MergeReport:
    """Merges experts into one checkpoint of the base's format.

    Example:
        >>> merge("base.nemo", ["a.nemo", "b.nemo"], "ties", density=0.3, output="merged.nemo")  # doctest: +SKIP

    Args:
        base: the model that the experts were fine-tuned from; None for methods that need none.
        experts: the fine-tuned models.
        method: name of a merging method (``nemo_merge.methods.names()``), or a method.
        output: the merged checkpoint; it appears at once when everything is done, or not at all.
        overwrite: replace an output that exists.
        rules: other settings for some tensors, see :func:`~nemo_merge.merging.rules.parse_rules`.
        then: post-processors of the merged task vectors, in order (``nemo_merge.methods.post_names()``).
        batch_norm: ``average``, ``pooled``, ``base`` or ``recalibrate``, see
            :func:`~nemo_merge.merging.plan.plan_merge`.
        audio: unlabelled audio for ``batch_norm="recalibrate"``, see there; needs NeMo.
        dtype: type of the merged weights; the base's by default.
        vocabulary: ``strict``, ``base`` or ``union`` where the inputs' tokens differ, see
            :func:`~nemo_merge.merging.plan.plan_merge`.
        device: where spectral methods factorise, ``cpu`` or ``cuda``; other methods are as fast as the disk.
        workers: threads; the number of cores by default. The bytes written do not depend on it.
        progress: show a progress bar; by default only on a terminal.
        ranks: the processes that share the work, see :func:`~nemo_merge.merging.ranks.ranks_of_torchrun`.
        as_adapter: write the merged change of adapters as one LoRA adapter (a folder) instead of a model: a number for
            the best approximation of that rank at most, True for the exact rank, which only rotation-equivariant
            methods have.
        **parameters: parameters of the method, ``scale`` and ``weights`` among them.

    Raises:
        CheckpointError: an input cannot be read.
        PlanError: the inputs do not fit together; all problems are listed.
        ConfigError: a method or parameter that does not exist, or a value out of range.
        MergeError: a result is not finite.
        OutputError: the output exists, or cannot be written.
    """
    chosen = _method(method, parameters)
    options = Options(
        rules=rules,
        then=then,
        batch_norm=batch_norm,
        audio=audio,
        dtype=dtype,
        vocabulary=vocabulary,
        device=device,
        workers=workers,
        overwrite=overwrite,
        progress=progress,
        ranks=ranks,
        as_adapter=as_adapter,
    )
    return merge_variants(base, experts, {Path(output): chosen}, options)[0]


@dataclass(frozen=True)
class Options(PlanOptions):
    """What :func:`merge` takes beside inputs, output and method; see there."""

    overwrite: bool = False
    progress: bool | None = None
    ranks: Ranks = ALONE
    """The processes that share the merge; see :func:`~nemo_merge.merging.ranks.ranks_of_torchrun`."""
    as_adapter: bool | int | None = None
    hash_anew: bool = False
    """Do not believe digests that are remembered of files that have not changed."""
    as_recorded: Callable[[dict[str, Any]], dict[str, Any]] = lambda found: found
    """Given the record of a merge, the one that its output is to carry: an earlier one when a merge is repeated."""


def merge_variants(
    base: Source | None, experts: Sequence[Source], variants: Mapping[Path, Method], options: Options
) -> list[MergeReport]:
    """Merges the same experts by several methods into one output each; none appears before all are done.

    Inputs are read, checked and hashed once, and methods that differ in late parameters (``scale``, ``beta``) share
    what is expensive. See :func:`~nemo_merge.merging.sweep` for a grid of parameters.

    Args:
        base: as in :func:`merge`.
        experts: as in :func:`merge`.
        variants: the method for every output.
        options: as in :func:`merge`, the same for all.
    """
    started = time.monotonic()
    ranks = options.ranks
    alone(options.batch_norm, ranks.count)
    check_as_adapter(options.as_adapter, ranks)
    with ExitStack() as stack:
        with ranks.together():
            for target in variants:
                for file in written_files(target, variants[target]):
                    check_output(file, options.overwrite)  # before anything is read: the user should not wait for this
            base_checkpoint, expert_checkpoints = open_inputs(base, experts, stack)
            inputs = [*expert_checkpoints, *([base_checkpoint] if base_checkpoint is not None else [])]
            for target in variants:
                _check_output_is_no_input(target, inputs)
                for template in (
                    [] if options.as_adapter else inputs[-1:] if base_checkpoint is not None else inputs[:1]
                ):
                    container_for(template, expert_checkpoints, target)  # raises where the format cannot be written
            before = fingerprints(inputs)
        digests = stack.enter_context(hashing(inputs, ranks, anew=options.hash_anew))
        with ranks.together():
            plans = plan_variants(base_checkpoint, expert_checkpoints, list(variants.values()), options, ranks)
        records = [options.as_recorded(record(plan, digests(), options.as_adapter)) for plan in plans]
        if options.as_adapter:
            unchanged = partial(check_unchanged, inputs, before)
            lost = write_adapters(list(variants), plans, records, options.as_adapter, options, unchanged)
            return _reports(variants, plans, records, lost, ranks.first, started)
        again = stack.enter_context(Recalibration(plans, list(variants), records)) if plans[0].audio else None
        writers, executions = _write(again.merged if again else list(variants), plans, records, options, stack)
        packages = [
            stack.enter_context(EmrPackage(package_path(target), plan))
            for target, plan in zip(variants, plans, strict=True)
            if isinstance(plan.method, Emr) and ranks.first
        ]
        if again is not None:
            writers = again.finish(writers, overwrite=options.overwrite, workers=options.workers)
        warnings = [
            tuple([*plan.warnings, *rounding_warnings(execution)])
            for plan, execution in zip(plans, executions, strict=True)
        ]
        with ranks.together():
            check_unchanged(inputs, before)
        for target, writer, known, plan, some in zip(variants, writers, records, plans, warnings, strict=False):
            writer.commit({RECORD: dump(known), CARD: model_card(target, known, plan, some)})
        for package in packages:
            package.commit()
    return _reports(variants, plans, records, warnings, ranks.first, started)


def _reports(
    targets: Iterable[Path],
    plans: Sequence[MergePlan],
    records: Sequence[dict[str, Any]],
    warnings: Sequence[Sequence[str]],
    aloud: bool,
    started: float,
) -> list[MergeReport]:
    """Says what was done, and logs the warnings if ``aloud``."""
    for warning in dict.fromkeys(warning for some in warnings for warning in some if aloud):
        logger.warning(warning)
    seconds = time.monotonic() - started
    return [
        MergeReport(target, provenance, plan.decisions(), some, seconds)
        for target, provenance, plan, some in zip(targets, records, plans, warnings, strict=True)
    ]


def _write(
    targets: Sequence[Path],
    plans: Sequence[MergePlan],
    records: Sequence[dict[str, Any]],
    options: Options,
    stack: ExitStack,
) -> tuple[list[Writer], list[Execution]]:
    """Computes and writes all tensors; the writers, which only the first rank has, are still to be committed."""
    ranks = options.ranks
    shards: list[Writer] = []
    writers: list[Writer] = []
    with ranks.together():
        if ranks.first:
            writers = [
                stack.enter_context(
                    writer_for(
                        plan.template, plan.experts, target, plan.output_specs, known, overwrite=options.overwrite
                    )
                )
                for target, plan, known in zip(targets, plans, records, strict=True)
            ]
        own = share_of(plans[0], ranks) if ranks.count > 1 else None
        if own is not None:
            shards = [
                stack.enter_context(ShardWriter(ranks, target, {name: plan.output_specs[name] for name in own}, known))
                for target, plan, known in zip(targets, plans, records, strict=True)
            ]
        with _bar(plans, options.progress if ranks.first else False, own) as advance:
            executions = execute_variants(plans, shards or writers, workers=options.workers, progress=advance, only=own)
        for shard in shards:
            shard.commit()
    if ranks.count > 1:
        with ranks.together():
            for target, known, writer in zip(targets, records, writers, strict=False):
                gather(target, ranks, known, writer)
        executions = [Execution.of(parts) for parts in zip(*ranks.all(executions), strict=True)]
    return writers, executions


def merge_state_dicts(
    base: Mapping[str, Shaped[Tensor, "..."]] | None,
    experts: Sequence[Mapping[str, Shaped[Tensor, "..."]]],
    method: str | Method = "boosted_tsvm",
    weights: Sequence[float] | None = None,
    scale: float | None = None,
    *,
    rules: Rules = (),
    then: Then = (),
    batch_norm: BatchNorm = "average",
    variances: Sequence[Mapping[str, Shaped[Tensor, "..."]]] | None = None,
    workers: int | None = None,
    **parameters: Any,
) -> dict[str, Tensor]:
    """Merges state dicts in memory; the inputs are not changed.

    Example:
        >>> import torch
        >>> base, expert = {"w": torch.zeros(2, 2)}, {"w": torch.ones(2, 2)}
        >>> merge_state_dicts(base, [expert, base], "task_arithmetic")["w"].tolist()
        [[0.5, 0.5], [0.5, 0.5]]

    Args:
        base: state dict of the model that the experts were fine-tuned from; None for methods that need none.
        experts: state dicts of the experts.
        method: name of a merging method, or a method.
        weights: one factor per expert.
        scale: factor on the merged task vector; the method's own by default.
        rules: as in :func:`merge`.
        then: as in :func:`merge`.
        batch_norm: as in :func:`merge`, ``recalibrate`` apart, which needs files.
        variances: posterior variances of every expert's weights, by tensor and in its shape (infinite: says nothing),
            for methods that weight by them.
        workers: as in :func:`merge`.
        **parameters: further parameters of the method.

    Returns:
        A state dict with the base's names, types and devices; what is no tensor is taken from the base.

    Raises:
        PlanError, ConfigError, MergeError: as in :func:`merge`.
    """
    if batch_norm == "recalibrate":
        raise ConfigError(
            "batch_norm=recalibrate runs the merged model through NeMo and needs .nemo files; merge files, or merge "
            "with another batch_norm and call nemo_merge.training.recalibrate.recalibrate on what you save"
        )
    parameters.update({key: value for key, value in (("weights", weights), ("scale", scale)) if value is not None})
    chosen = _method(method, parameters)
    template = base if base is not None else (experts[0] if experts else {})
    base_checkpoint = StateDictCheckpoint(base, "<base>") if base is not None else None
    if variances is not None and len(variances) != len(experts):
        raise ConfigError(f"variances of {len(variances)} experts for {len(experts)}; give one mapping per expert")
    expert_checkpoints = [
        StateDictCheckpoint(expert, f"<expert {index}>", variances[index] if variances is not None else {})
        for index, expert in enumerate(experts)
    ]
    plan = plan_merge(
        base_checkpoint, expert_checkpoints, chosen, rules=rules, then=then, batch_norm=batch_norm, workers=workers
    )
    writer = plan.template.writer(Path(), plan.output_specs, {})
    assert isinstance(writer, StateDictWriter)
    execution = execute(plan, writer, workers=workers)
    writer.commit()
    for warning in (*plan.warnings, *rounding_warnings(execution)):
        logger.warning(warning)
    return {name: writer.state_dict.get(name, value) for name, value in template.items()}


def written_files(output: Path, method: Method) -> list[Path]:
    """The files of a merge by this method that hold weights: the checkpoint, and for ``emr`` its package."""
    return [output, package_path(output)] if isinstance(method, Emr) else [output]


def _method(method: str | Method, parameters: Mapping[str, Any]) -> Method:
    if isinstance(method, Method):
        if parameters:
            raise ConfigError(
                f"parameters {sorted(parameters)} cannot be given beside a finished method; make them part of it"
            )
        return method
    return methods.get(method, **parameters)


def _check_output_is_no_input(output: Path, inputs: Sequence[Checkpoint]) -> None:
    for checkpoint in inputs:
        if output.exists() and checkpoint.path.exists() and output.samefile(checkpoint.path):
            raise OutputError(
                f"{output}: is also an input of this merge; choose another output so that nothing is lost"
            )


def rounding_warnings(execution: Execution) -> list[str]:
    """What to tell of a merge whose output type is too coarse for what it changed."""
    return [
        f"rounding to {str(dtype).removeprefix('torch.')} loses {rounding.share:.0%} of what the merge changes; "
        "pass dtype=float32 to keep it"
        for dtype, rounding in execution.rounding.items()
        if rounding.share > ROUNDING_WARNING
    ]


def _bar(
    plans: Sequence[MergePlan], show: bool | None, only: Collection[str] | None
) -> AbstractContextManager[Progress | None]:
    names = list(dict.fromkeys(plan.method.name for plan in plans))
    total = sum(
        spec.nbytes for plan in plans for name, spec in plan.output_specs.items() if only is None or name in only
    )
    return bar(f"merging by {', '.join(names)}", total, show)
