"""What stands against a fine-tuning job of Whisper, found before transformers is imported, and all at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints import check_output
from ..errors import ConfigError, did_you_mean
from ..scoring.text import normaliser
from .checks import caught, numbers, part, refuse, schedule, selection
from .recogniser import check_model
from .sources import check_mix, read_source
from .whisper_base import is_hub_name, is_whisper
from .whisper_data import task_of
from .whisper_fine_tune import PRECISIONS, STORED
from .whisper_model import check_masking

if TYPE_CHECKING:
    from .whisper_fine_tune import WhisperFineTuningJob

_POSITIVE = ("steps", "epochs", "batch_size", "accumulate", "devices", "num_nodes", "validate_every", "patience",
             "checkpoint_every")  # fmt: skip
_WHOLE = (*_POSITIVE, "workers", "seed")
_OPTIM = ("name", "lr", "betas", "eps", "weight_decay", "sched")
_CHOICES = {"precision": PRECISIONS, "store": STORED, "accelerator": ("auto", "cpu", "gpu")}


def check_whisper_job(job: WhisperFineTuningJob, shown: str = "fine-tuning") -> None:
    """Refuses a job that cannot be done; the content of a base from the hub is checked when it is here.

    Args:
        job: what is to be done.
        shown: what messages call it, for example its file.

    Raises:
        ConfigError: with every problem found.
    """
    refuse(list(_problems(job)), shown)


def _problems(job: WhisperFineTuningJob) -> Iterator[str]:
    yield from numbers(job, _POSITIVE, _WHOLE, ("gradient_clip",))
    yield from caught(lambda: _check_base(job))
    yield from caught(lambda: _check_output(job))
    yield from _data(job)
    yield from part(job)
    if job.merge_adapter and not job.trains_adapter:
        yield f"merge_adapter: is for trainable=lora and bayesian_lora, not for {job.trainable!r}"
    if job.adapter.get("rho_learning_rate") is not None:
        yield "adapter: rho_learning_rate is for NeMo models; here the spreads have the learning rate of everything"
    yield from schedule(job)
    for key in job.optim if isinstance(job.optim, Mapping) else ():
        if key not in _OPTIM:
            yield f"optim: there is no setting {key!r}{did_you_mean(str(key), _OPTIM)}"
    yield from selection(job)
    yield from caught(lambda: normaliser(job.text))
    for key, known in _CHOICES.items():
        if (value := getattr(job, key)) not in known:
            yield f"{key}={value!r}{did_you_mean(str(value), known)}"
    if isinstance(job.spec_augment, Mapping):
        settings = job.spec_augment
        yield from caught(lambda: check_masking(settings))
    elif not isinstance(job.spec_augment, bool | None):
        yield f"spec_augment={job.spec_augment!r} is neither true, false nor a mapping of settings"
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        yield "srun started several tasks that do not know of each other; let srun start torchrun once on every machine"
    for package in ("transformers", "accelerate", "lhotse"):
        if find_spec(package) is None:
            yield f"fine-tuning Whisper needs {package}, which is not installed; pip install 'nemo-merge[whisper]'"


def _check_base(job: WhisperFineTuningJob) -> None:
    if is_hub_name(job.base):
        return
    check_model(Path(job.base))
    if not is_whisper(job.base):
        raise ConfigError(f"base: {job.base} is no folder of a Hugging Face Whisper")


def _check_output(job: WhisperFineTuningJob) -> None:
    output = Path(job.output)
    if output.suffix == ".nemo":
        raise ConfigError(f"output: {output}: a Whisper is a folder; leave out .nemo")
    output.parent.mkdir(parents=True, exist_ok=True)
    check_output(output, job.overwrite)


def _data(job: WhisperFineTuningJob) -> Iterator[str]:
    if isinstance(job.train, (str, Mapping)) or not job.train:
        yield "train: is not a list of sources; write train: [PATH, ...]"
        return
    if not isinstance(job.validation, Mapping):
        yield "validation: is not a mapping from names to sources; write validation: {dev: PATH}"
        return
    places = {f"train[{index}]": value for index, value in enumerate(job.train)}
    places |= {f"validation.{name}": value for name, value in job.validation.items()}
    found = []
    for place, value in places.items():
        try:
            source = read_source(value, place)
            task_of(source, job, place)
        except ConfigError as error:
            yield str(error)
            continue
        if source.endless:
            yield f"{place}: Whisper is trained on Lhotse cuts and NeMo manifests, not on {source.kind}"
        elif place.startswith("train"):
            found.append(source)
    yield from caught(lambda: check_mix(found, "train"))
