"""A fine-tuning job of Whisper in the words of transformers' ``TrainingArguments``."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments

from ..errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from .whisper_fine_tune import WhisperFineTuningJob

_REPORTS = 8
# Settings of the job in transformers' words; its `trainer` has the others.
_OWN = ("output_dir", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "num_train_epochs",
        "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "weight_decay",
        "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "fp16", "gradient_checkpointing",
        "activation_checkpointing", "seed",
        "data_seed", "dataloader_num_workers", "use_cpu", "eval_strategy", "eval_steps", "save_strategy", "save_steps",
        "save_total_limit", "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
        "remove_unused_columns", "resume_from_checkpoint")  # fmt: skip


def arguments(job: WhisperFineTuningJob, utterances: int) -> TrainingArguments:
    """A job in transformers' words.

    Args:
        job: what to do.
        utterances: to train on.

    Raises:
        ConfigError: a setting that transformers does not have or refuses.
    """
    known = [item.name for item in dataclasses.fields(TrainingArguments)]
    for key in job.trainer:
        if key in _OWN:
            raise ConfigError(f"trainer: {key} is set by the job's own settings")
        if key not in known:
            raise ConfigError(f"trainer: transformers has no setting {key!r}{did_you_mean(str(key), known)}")
    try:
        made = TrainingArguments(**{**dict(_fixed(job)), **dict(_schedule(job, utterances)), **job.trainer})
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"transformers refuses the settings: {str(error).splitlines()[0]}") from error
    if made.n_gpu > 1:
        made._n_gpu = 1  # one process is one GPU: DataParallel, which transformers would choose, is slow and not exact
    return made


def _fixed(job: WhisperFineTuningJob) -> Iterator[tuple[str, Any]]:
    yield from {
        "output_dir": str(job.checkpoints),
        "per_device_train_batch_size": job.batch_size,
        "per_device_eval_batch_size": job.batch_size,
        "gradient_accumulation_steps": job.accumulate,
        "max_grad_norm": job.gradient_clip,
        "bf16": job.precision == "bf16-mixed",
        "fp16": job.precision == "16-mixed",
        "use_cpu": job.accelerator == "cpu",
        "dataloader_num_workers": job.workers,
        "seed": job.seed,
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": True,
        "report_to": "none",
    }.items()
    if job.gradient_checkpointing:
        known = [item.name for item in dataclasses.fields(TrainingArguments)]
        name = next(item for item in ("activation_checkpointing", "gradient_checkpointing") if item in known)
        yield name, True
        yield f"{name}_kwargs", {"use_reentrant": False}  # works where embeddings are frozen


def _schedule(job: WhisperFineTuningJob, utterances: int) -> Iterator[tuple[str, Any]]:
    sched = dict(job.optim.get("sched") or {"name": "linear"})
    betas = job.optim.get("betas", (0.9, 0.999))
    batches = math.ceil(utterances / (job.batch_size * int(os.environ.get("WORLD_SIZE", "1"))))
    total = job.steps or math.ceil(batches / job.accumulate) * (job.epochs or 1)
    every = job.validate_every or max(1, total // 10)
    yield from {
        "max_steps": job.steps or -1,
        "num_train_epochs": job.epochs or 1,
        "optim": job.optim.get("name", "adamw_torch"),
        "learning_rate": job.optim["lr"],
        "adam_beta1": betas[0],
        "adam_beta2": betas[1],
        "adam_epsilon": job.optim.get("eps", 1e-8),
        "weight_decay": job.optim.get("weight_decay", 0.0),
        "lr_scheduler_type": sched.pop("name"),
        "warmup_steps": sched.pop("warmup_steps", 0),
        "lr_scheduler_kwargs": sched,
        "logging_steps": max(1, total // _REPORTS),
        "eval_strategy": "steps" if job.validation else "no",
        "eval_steps": every if job.validation else None,
        "save_strategy": "steps" if job.select or job.checkpoint_every else "no",
        "save_steps": every if job.select else job.checkpoint_every or 500,
        "save_total_limit": 2,
        "load_best_model_at_end": job.select is not None,
        "metric_for_best_model": f"mean_{job.select}" if job.select else None,
        "greater_is_better": False if job.select else None,
    }.items()
