"""What stands against a fine-tuning job, found before NeMo is imported, and all at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import check_output, open_checkpoint
from ..errors import CheckpointError, ConfigError, NemoMergeError, OutputError, did_you_mean
from .fine_tune import PARTS
from .new_labels import label_problems
from .regulariser_settings import EWCSettings, L2Settings, read_regulariser
from .sources import Source, check_mix, read_source

if TYPE_CHECKING:
    from .fine_tune import FineTuningJob

_METRICS = ("val_loss", "val_wer")
_POSITIVE = ("steps", "epochs", "batch_size", "batch_duration", "accumulate", "devices", "num_nodes", "validate_every",
             "patience", "checkpoint_every")  # fmt: skip
_WHOLE = ("steps", "epochs", "batch_size", "accumulate", "devices", "num_nodes", "validate_every", "patience",
          "checkpoint_every", "keep_checkpoints", "seed")  # fmt: skip
_LORA = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora")


def check_job(job: FineTuningJob, shown: str = "fine-tuning") -> None:
    """Refuses a job that cannot be done.

    Args:
        job: what is to be done.
        shown: what messages call it, for example its file.

    Raises:
        ConfigError: with every problem found.
    """
    refuse(list(_problems(job)), shown)


def refuse(problems: Sequence[str], shown: str) -> None:
    """Raises a ``ConfigError`` with every problem, if there is one."""
    if len(problems) == 1:
        raise ConfigError(f"{shown}: {problems[0]}")
    if problems:
        raise ConfigError(f"{shown}: {len(problems)} problems:\n" + "\n".join(f"  - {problem}" for problem in problems))


def _problems(job: FineTuningJob) -> Iterator[str]:
    yield from numbers(job, (*_POSITIVE, "scale"), _WHOLE, ("gradient_clip",))
    if isinstance(job.scale, (int, float)) and job.scale > 1:
        yield f"scale={job.scale!r} is not above 0 and at most 1"
    yield from caught(lambda: _check_base(job))
    yield from caught(lambda: _check_output(job))
    yield from _data(job)
    yield from part(job)
    if job.labels:
        yield from label_problems(job)
    if job.regulariser is not None:
        yield from _regulariser(job)
    yield from schedule(job)
    yield from _loader(job)
    yield from selection(job)
    yield from _place(job)


def caught(check: Callable[[], Any]) -> Iterator[str]:
    """The message of what a check raises."""
    try:
        check()
    except NemoMergeError as error:
        yield str(error)


def numbers(job: Any, positive: Sequence[str], whole: Sequence[str], others: Sequence[str]) -> Iterator[str]:
    """What is wrong with the numbers of a job: fields that must be above 0, whole, or numbers from 0 on."""
    for name in {*positive, *whole, *others}:
        value = getattr(job, name)
        if value is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or (name in whole and not isinstance(value, int)):
            yield f"{name}={value!r} is not a {'whole ' if name in whole else ''}number"
        elif value < 0 or (value == 0 and name in positive):
            yield f"{name}={value!r} is not {'above' if name in positive else 'from'} 0"


def _check_base(job: FineTuningJob) -> None:
    with open_checkpoint(job.base) as base:
        if base.format != "nemo":
            raise CheckpointError(
                f"base: {job.base} is of format {base.format!r}; fine-tuning starts from a .nemo file"
            )


def _check_output(job: FineTuningJob) -> None:
    output = Path(job.output)
    if output.suffix != ".nemo" and not job.trains_adapter:
        raise OutputError(f"output: {output} must end in .nemo; only adapters are also written as folders")
    output.parent.mkdir(parents=True, exist_ok=True)
    check_output(output, job.overwrite)


def _data(job: FineTuningJob) -> Iterator[str]:
    if isinstance(job.train, (str, Mapping)) or not job.train:
        yield "train: is not a list of sources; write train: [PATH, ...]"
        return
    sources: list[Source] = []
    for index, value in enumerate(job.train):
        yield from caught(partial(_append, sources, value, f"train[{index}]"))
    yield from caught(lambda: check_mix(sources, "train"))
    if job.epochs is not None and (len(sources) > 1 or any(source.endless for source in sources)):
        yield "epochs: several sources, and shards, are mixed without end, so there are no epochs; give steps"
    if not isinstance(job.validation, Mapping):
        yield "validation: is not a mapping from names to sources; write validation: {dev: PATH}"
        return
    for name, value in job.validation.items():
        yield from caught(partial(read_source, value, f"validation.{name}"))


def _append(sources: list[Source], value: Any, place: str) -> None:
    sources.append(read_source(value, place))


def short_training(job: Any) -> Iterator[str]:
    """What is wrong with a job that trains on Lhotse cuts with AdamW, a warm-up and a cosine."""
    for name in ("steps", "learning_rate", "batch_size", "workers"):
        if getattr(job, name) is None:
            yield f"{name}: is missing"
    whole = ("steps", "warmup_steps", "batch_size", "seed", "workers")
    yield from numbers(job, ("steps", "learning_rate", "batch_size", "workers"), whole, ("final_learning_rate",))
    if Path(job.output).suffix != ".nemo":
        yield f"output: {job.output} must end in .nemo"
    if isinstance(job.cuts, (str, Path)) or not job.cuts:
        yield "cuts: is not a list of Lhotse cut manifests"
    if not isinstance(job.optimiser, Mapping):
        yield f"optimiser={job.optimiser!r} is not a mapping of AdamW's arguments"


def part(job: Any) -> Iterator[str]:
    """What is wrong with what a job trains, and with its adapter."""
    if isinstance(job.trainable, str) and job.trainable not in PARTS:
        known = did_you_mean(job.trainable, PARTS)
        yield f"trainable={job.trainable!r} is no part of a model{known}; patterns are given as a list"
    elif not isinstance(job.trainable, str) and not job.trainable:
        yield "trainable: the list of patterns is empty"
    if job.adapter and not job.trains_adapter:
        yield f"adapter: is for trainable=lora and bayesian_lora, not for {job.trainable!r}"
    if job.trainable == "lora":
        for key in job.adapter:
            if key not in _LORA:
                yield f"adapter: LoRA has no setting {key!r}{did_you_mean(key, _LORA)}"
    if job.trainable == "bayesian_lora":
        yield from caught(lambda: _bayesian(job.adapter))
    if job.trains_adapter and find_spec("peft") is None:
        yield "adapters need PEFT, which is not installed; pip install 'nemo-merge[peft]'"


def _bayesian(settings: Mapping[str, Any]) -> None:
    from dataclasses import fields

    from ..adapters import BayesianLoraConfig

    known = [item.name for item in fields(BayesianLoraConfig)]
    for key in settings:
        if key not in known:
            raise ConfigError(f"adapter: a Bayesian adapter has no setting {key!r}{did_you_mean(key, known)}")
    BayesianLoraConfig(**settings)


def _regulariser(job: FineTuningJob) -> Iterator[str]:
    try:
        settings = read_regulariser(job.regulariser or {})
    except ConfigError as error:
        yield str(error)
        return
    if isinstance(settings, L2Settings) and job.trainable != "lora":
        yield f"regulariser l2: is for trainable=lora, not {job.trainable!r}; l2_sp holds weights near the base's"
    if isinstance(settings, EWCSettings):
        if settings.source is None and not Path(settings.fisher).is_file():
            yield f"regulariser ewc: {settings.fisher} does not exist, and there is no source to estimate it from"
        if (source := settings.source) is not None:
            yield from caught(lambda: read_source(source, "regulariser.source"))


def schedule(job: Any) -> Iterator[str]:
    """What is wrong with how long a job trains and how fast."""
    if (job.steps is None) == (job.epochs is None):
        yield "give either steps or epochs"
    rate = job.optim.get("lr") if isinstance(job.optim, Mapping) else None
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not rate > 0:
        yield f"optim: lr={rate!r} is not a positive number (YAML reads 1e-4 as text; write 1.0e-4)"
    sched = job.optim.get("sched") if isinstance(job.optim, Mapping) else None
    if sched is not None and not (isinstance(sched, Mapping) and sched.get("name")):
        yield "optim: sched says no name; write for example sched: {name: CosineAnnealing, warmup_steps: 100}"


def _loader(job: FineTuningJob) -> Iterator[str]:
    sched = job.optim.get("sched") if isinstance(job.optim, Mapping) else None
    if isinstance(sched, Mapping) and sched.get("name") and job.epochs is not None and not sched.get("max_steps"):
        yield "optim: with epochs, the schedule does not know its end; give sched.max_steps, or steps instead of epochs"
    if job.batch_size is not None and job.batch_duration is not None and job.loader.get("use_bucketing") is False:
        yield "batch_size and batch_duration: without bucketing give one of them"
    for key in ("input_cfg", "manifest_filepath", "cuts_path", "shar_path", "seed", "shard_seed"):
        if key in job.loader:
            yield f"loader: {key} is set by train and seed"
    for key in ("batch_size", "batch_duration"):
        if key in job.loader:
            yield f"loader: {key} is a setting of its own; write {key}: {job.loader[key]}"


def selection(job: Any) -> Iterator[str]:
    """What is wrong with how a job chooses its weights."""
    if job.select is not None and job.select not in _METRICS:
        yield f"select={job.select!r}{did_you_mean(str(job.select), _METRICS)}"
    for name in ("select", "validate_every"):
        if getattr(job, name) is not None and not job.validation:
            yield f"{name}={getattr(job, name)!r} needs validation data; write validation: {{dev: PATH}}"
    for name in ("patience", "keep_checkpoints"):
        if getattr(job, name, None) and job.select is None:
            yield f"{name}={getattr(job, name)!r} needs a value to go by; write select: val_wer or val_loss"


def _place(job: FineTuningJob) -> Iterator[str]:
    if find_spec("nemo") is None:
        yield "fine-tuning needs NeMo, which is not installed; pip install 'nemo-merge[nemo]'"
    if isinstance(job.spec_augment, Sequence):
        yield f"spec_augment={job.spec_augment!r} is neither true, false nor a mapping of settings"
    if job.exp_manager is not None and not isinstance(job.exp_manager, Mapping):
        yield "exp_manager: is not a mapping of settings"
