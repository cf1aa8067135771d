"""Decides what happens to every tensor, and finds everything that stands against a merge before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, get_args

import torch

from ..checkpoints import Checkpoint, TensorSpec
from ..errors import ConfigError, PlanError, did_you_mean
from ..methods import Method, PostProcessor, get_post
from ..methods.emr import Emr
from ..tensors import NEVER_MERGED, Role, depths_of, role_of
from ..training.audio import AudioSample
from .checks import compare_headers
from .parallel import default_workers, single_threaded_torch
from .posteriors import check_posteriors
from .ranks import ALONE, Ranks
from .recalibration import Audio, check_recalibration, read_calibration
from .rules import Rule, parse_rules
from .scan import Scan, scan_tensor
from .vocabulary import Alignment, VocabularyPolicy, align

BatchNorm = Literal["average", "pooled", "base", "recalibrate"]
Rules = Sequence[Rule | Mapping[str, Any]]
Then = Sequence[PostProcessor | Mapping[str, Any] | str]
_SHOWN = 5  # tensors named in a message; the rest is counted
DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Treatment(StrEnum):
    """What happens to a tensor."""

    METHOD = "method"
    """The method's own arithmetic."""
    MEAN = "mean"
    """Base plus scale times the mean (or sum) of the weighted task vectors: what the method does not treat itself."""
    AVERAGE = "average"
    """Mean of the experts' values: statistics, and adapter modules that the base lacks."""
    POOLED = "pooled"
    """Variance by the law of total variance, from the experts' means and variances."""
    RECALIBRATED = "recalibrated"
    """Statistics that are estimated again from audio, once the other tensors are merged."""
    COPY = "copy"
    """Taken from the base as it is."""


@dataclass(frozen=True)
class PlanOptions:
    """What :func:`plan_merge` takes beside inputs and method; see there."""

    rules: Rules = ()
    then: Then = ()
    batch_norm: BatchNorm = "average"
    audio: Audio | None = None
    dtype: str | None = None
    device: str = "cpu"
    workers: int | None = None
    vocabulary: VocabularyPolicy = "strict"


@dataclass(frozen=True)
class Row:
    """One tensor of the plan, with the method that applies to it; ``reason`` says why it is not simply left to that."""

    name: str
    spec: TensorSpec
    role: Role
    treatment: Treatment
    method: Method
    reason: str = ""


@dataclass(frozen=True)
class MergePlan:
    """Everything that is decided about a merge.

    Attributes:
        template: checkpoint whose configuration and tensors that are copied the output takes: the base, or the first
            expert when there is none.
        base: the base model, or None.
        experts: the experts, in the order of their weights.
        method: the method with its parameters; rules may give single tensors another one.
        rules: the rules that do.
        then: post-processors of the merged task vectors.
        rows: one per tensor, in the order of the template; tied names are left out.
        ties: names that share another tensor's data, with the name that owns it.
        warnings: what the user should know.
        batch_norm, dtype, device: the options of :func:`plan_merge`.
        audio: what statistics are estimated from (``batch_norm="recalibrate"``).
        alignment: how the tokens of the inputs were brought together; None when all have the same rows.
    """

    template: Checkpoint
    base: Checkpoint | None
    experts: Sequence[Checkpoint]
    method: Method
    rows: Sequence[Row]
    ties: Mapping[str, str] = field(default_factory=dict)
    rules: Sequence[Rule] = ()
    then: Sequence[PostProcessor] = ()
    warnings: Sequence[str] = ()
    batch_norm: BatchNorm = "average"
    dtype: torch.dtype | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    audio: AudioSample | None = None
    alignment: Alignment | None = None

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
    rules: Rules = (),
    then: Then = (),
    batch_norm: BatchNorm = "average",
    audio: Audio | None = None,
    dtype: str | None = None,
    vocabulary: VocabularyPolicy = "strict",
    device: str = "cpu",
    workers: int | None = None,
) -> MergePlan:
    """Plans a merge: reads headers and values, decides, and reports all problems at once.

    Args:
        base: the model that the experts were trained from; None for methods that need none.
        experts: fine-tuned models with the same tensors.
        method: merging method.
        rules: other settings for some tensors, see :func:`~nemo_merge.merging.rules.parse_rules`.
        then: post-processors of the merged task vectors, by name or as mappings with name and parameters.
        batch_norm: what happens to running statistics. ``average`` takes the experts' mean, ``pooled`` the statistics
            of their pooled data (law of total variance), ``base`` leaves the base's, and ``recalibrate`` estimates
            them for the merged model from ``audio``.
        audio: unlabelled audio for ``batch_norm="recalibrate"``: a NeMo manifest, Lhotse cuts, a folder or a list of
            files, or a mapping ``{"path": ..., "seconds": 600, "seed": 0}``; see
            :func:`~nemo_merge.training.audio.read_audio`.
        dtype: type of the merged weights (``float32``, ``float16``, ``bfloat16``, ``float64``); the base's by default.
        vocabulary: what happens when the inputs' tokens differ. Rows of the output layer and embeddings are aligned by
            token in any case. ``strict`` wants the same tokens, in any order; ``base`` keeps the base's and drops
            others; ``union`` adds the experts' tokens, whose rows are the mean over the experts that have them.
        device: where the factorisations of spectral methods run, and the model that is recalibrated: ``cpu``, ``cuda``,
            ``cuda:1``.
        workers: threads; the number of cores by default.

    Raises:
        PlanError: with every problem found: missing, additional or differently shaped tensors, other model classes,
            tokens or architectures, values that are not finite, negative variances, too few experts, rules that
            match nothing, experts without the posteriors that the method weights by.
        ConfigError: an option that does not exist, or another number of weights than experts.
    """
    options = PlanOptions(rules, then, batch_norm, audio, dtype, device, workers, vocabulary)
    return plan_variants(base, experts, [method], options)[0]


def plan_variants(
    base: Checkpoint | None,
    experts: Sequence[Checkpoint],
    variants: Sequence[Method],
    options: PlanOptions,
    ranks: Ranks = ALONE,
) -> list[MergePlan]:
    """One plan for each of several methods, reading the inputs once; errors as in :func:`plan_merge`.

    Several ``ranks`` share the reading of values.
    """
    batch_norm, dtype = options.batch_norm, options.dtype
    device = _device(options.device)
    if batch_norm not in get_args(BatchNorm):
        raise ConfigError(
            f"batch_norm={batch_norm!r} does not exist{did_you_mean(str(batch_norm), get_args(BatchNorm))}"
        )
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r} does not exist{did_you_mean(str(dtype), DTYPES)}")
    if options.vocabulary not in get_args(VocabularyPolicy):
        known = get_args(VocabularyPolicy)
        raise ConfigError(
            f"vocabulary={options.vocabulary!r} does not exist{did_you_mean(str(options.vocabulary), known)}"
        )
    then = [options.then] if isinstance(options.then, (str, Mapping)) else options.then
    posts = [_post(value) for value in then]
    parsed = [parse_rules(options.rules, method, len(experts)) for method in variants]
    used = [*variants, *(rule.method for some in parsed for rule in some if rule.method is not None)]
    problems = list(dict.fromkeys(problem for method in used for problem in _check_counts(base, experts, method)))
    if problems:
        raise PlanError(problems)
    for method in used:
        method.resolved_weights(len(experts))
    warnings: list[str] = []
    aligned = align(base, experts, options.vocabulary, problems, warnings)
    base, experts = aligned.base, aligned.experts
    if aligned.alignment is not None and aligned.alignment.added and any(isinstance(method, Emr) for method in used):
        problems.append("emr needs the base beside its package, so the vocabulary cannot grow; pass vocabulary=base")
    template = base if base is not None else experts[0]
    calibration = read_calibration(batch_norm, options.audio)
    others = experts if base is not None else experts[1:]
    compare_headers(template, others, problems, warnings, aligned.unaligned)
    scans = _scan(template, experts, options.workers, ranks)
    for scan in scans.values():
        problems.extend(scan.problems)
    roles = {name: role_of(name, template.specs[name].shape, template.specs[name].dtype) for name in scans}
    problems.extend(_check_batch_norm(batch_norm, base, template, roles))
    problems.extend(_check_rules(parsed[0], roles, warnings, variants[0]) if parsed else [])
    if problems:
        raise PlanError(problems)
    if not any(scan.changed for scan in scans.values()):
        warnings.append("no expert differs from the base: the output will be a copy of it")
    if batch_norm == "pooled":
        _mark_pooled(scans)
    depths = depths_of(template.specs)
    plans = []
    for method, own in zip(variants, parsed, strict=True):
        rows = []
        for name, scan in scans.items():
            rule = next((rule for rule in own if rule.matches(name, roles[name])), None)
            chosen = rule.method_at(name, roles[name], depths.get(name)) if rule else method
            about = (template.specs[name], roles[name], scan, chosen, method, batch_norm, experts, rule)
            rows.append(_decide(name, *about, name in template.added))
        merged = [(row.name, row.method) for row in rows if row.treatment is Treatment.METHOD]
        problems.extend(check_posteriors(merged, experts))
        plans.append(
            MergePlan(
                template,
                base,
                experts,
                method,
                rows,
                template.ties,
                own,
                posts,
                warnings,
                batch_norm,
                DTYPES[dtype] if dtype else None,
                device,
                calibration,
                aligned.alignment,
            )
        )
    if problems:
        raise PlanError(list(dict.fromkeys(problems)))
    return plans


def _post(value: PostProcessor | Mapping[str, Any] | str) -> PostProcessor:
    if isinstance(value, PostProcessor):
        return value
    values = {"name": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"then: {value!r} is neither the name of a post-processor nor a mapping with a name")
    return get_post(name, **values)


def _check_counts(base: Checkpoint | None, experts: Sequence[Checkpoint], method: Method) -> list[str]:
    least, most = method.minimum_experts, method.maximum_experts
    problems = []
    if len(experts) < least:
        problems.append(f"{method.name} needs {least} or more experts, but {len(experts)} are given")
    if most is not None and len(experts) > most:
        problems.append(f"{method.name} takes {most} experts at most, but {len(experts)} are given")
    if base is None and experts and method.requires_base(len(experts)):
        problems.append(f"{method.name} works on task vectors and needs a base; pass base=")
    return problems


def _check_batch_norm(
    batch_norm: BatchNorm, base: Checkpoint | None, template: Checkpoint, roles: Mapping[str, Role]
) -> Iterator[str]:
    if batch_norm == "base" and base is None:
        yield "batch_norm=base takes the base's statistics, but no base is given; pass base= or batch_norm=average"
    if batch_norm == "recalibrate":
        yield from check_recalibration(template, roles)


def _mark_pooled(scans: Mapping[str, Scan]) -> None:
    """A pooled variance changes with the means that it is pooled around, even where all variances are the same."""
    for name, scan in scans.items():
        if name.endswith("running_var"):
            mean = scans.get(name.removesuffix("running_var") + "running_mean")
            scan.changed = scan.changed or (mean is not None and mean.changed)


def _check_rules(rules: Sequence[Rule], roles: Mapping[str, Role], warnings: list[str], main: Method) -> Iterator[str]:
    """Problems with rules that do nothing; what no rule matches is reported among the warnings."""
    left = [name for name, role in roles.items() if role not in NEVER_MERGED]
    for rule in rules:
        if not any(rule.matches(name, roles[name]) for name in roles):
            yield f"{rule.label} matches no tensor; nemo-merge inspect --tensors FILE lists their names"
            continue
        left = [name for name in left if not rule.matches(name, roles[name])]
    if rules and left:
        shown = ", ".join(left[:_SHOWN]) + (f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else "")
        warnings.append(f"{len(left)} tensors match no rule and are merged by {main.name}: {shown}")


def _scan(template: Checkpoint, experts: Sequence[Checkpoint], workers: int | None, ranks: Ranks) -> dict[str, Scan]:
    names = [name for name in template.specs if name not in template.ties]
    mine = ranks.mine(names, lambda name: template.specs[name].nbytes)
    with ranks.together(), single_threaded_torch(), ThreadPoolExecutor(workers or default_workers()) as pool:
        own = dict(zip(mine, pool.map(lambda name: scan_tensor(name, template, experts), mine), strict=True))
    found = {name: scan for part in ranks.all(own) for name, scan in part.items()}
    return {name: found[name] for name in names}


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name!r} does not exist; known: cpu, cuda, cuda:0, ...") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(f"device={name}: PyTorch finds no such GPU on this machine; leave device out to use the CPU")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={name}: factorisations need float64, which only cpu and cuda have")
    return device


def _decide(
    name: str,
    spec: TensorSpec,
    role: Role,
    scan: Scan,
    method: Method | None,
    main: Method,
    batch_norm: BatchNorm,
    experts: Sequence[Checkpoint],
    rule: Rule | None,
    added: bool,
) -> Row:
    """The row of one tensor; ``method`` is None where a rule leaves it at the base, ``added`` what the base lacks."""
    used = method or main

    def row(treatment: Treatment, reason: str = "") -> Row:
        return Row(name, spec, role, treatment, used, "; ".join(filter(None, [rule.label if rule else "", reason])))

    if role is Role.BUFFER:
        return row(Treatment.COPY, "a counter, not a weight")
    if role is Role.PREPROCESSOR:
        return row(Treatment.COPY, "a constant of the feature extractor")
    statistics = role in (Role.BATCH_NORM_MEAN, Role.BATCH_NORM_VARIANCE)
    if statistics and batch_norm == "recalibrate" and method is not None:
        # Also where all models have the same statistics: the weights before them are others now.
        return row(Treatment.RECALIBRATED, "statistics, not weights: estimated from audio for the merged weights")
    if not scan.changed:
        return row(Treatment.COPY, "the same in all models")
    if method is None:
        return row(Treatment.COPY, "left at the base")
    if added:
        return row(Treatment.AVERAGE, "part of an adapter that the base lacks: without an origin, only a mean is left")
    if used.zero_scale_is_base and used.resolved_scale(len(experts)) == 0:
        return row(Treatment.COPY, "a scale of 0 merges nothing")
    if statistics:
        if batch_norm == "base":
            return row(Treatment.COPY, "batch_norm=base: the statistics that the base was trained with")
        if batch_norm == "pooled" and role is Role.BATCH_NORM_VARIANCE:
            return row(Treatment.POOLED, "statistics, not weights: of the pooled data, by the law of total variance")
        if batch_norm == "pooled":
            return row(Treatment.AVERAGE, "statistics, not weights: the mean of the pooled data is that of the means")
        return row(Treatment.AVERAGE, "statistics, not weights: arithmetic could make a variance negative")
    if used.merges(role):
        return row(Treatment.METHOD)
    return row(Treatment.MEAN, f"{used.name} treats matrices only")
