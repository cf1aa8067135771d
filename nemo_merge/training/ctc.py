"""Trains and fine-tunes character CTC models through NeMo, reproducibly."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Report = Callable[[int, int, float], None]
"""Called now and then with the step, the number of steps and the training loss."""


@dataclass(frozen=True)
class TrainingJob:
    """One model to train.

    Attributes:
        output: the ``.nemo`` to write; it appears when training is done.
        cuts: Lhotse cut manifests to train on, mixed in proportion to their size.
        model: NeMo configuration of a new model (``preprocessor``, ``encoder``, ``decoder``, ``labels`` ...).
        init_from: ``.nemo`` to fine-tune instead.
        steps: number of optimiser steps.
        learning_rate: peak of the schedule; it warms up linearly and falls as a cosine.
        warmup_steps: length of the warm-up.
        final_learning_rate: end of the schedule, as a share of the peak.
        batch_size: utterances in a batch.
        seed: of the weights and of the order of the data.
        threads: threads of torch.
    """

    output: Path
    cuts: tuple[Path, ...]
    steps: int
    learning_rate: float
    model: Mapping[str, Any] | None = None
    init_from: Path | None = None
    warmup_steps: int = 20
    final_learning_rate: float = 0.01
    batch_size: int = 16
    seed: int = 0
    threads: int = 1
    optimiser: Mapping[str, Any] = field(default_factory=lambda: {"betas": [0.9, 0.98], "weight_decay": 1e-3})


def train(job: TrainingJob, report: Report | None = None, report_every: int = 100) -> Path:
    """Trains a model with Lightning and Lhotse's bucketing sampler and saves it.

    The same job gives the same weights on the same machine: NeMo's loader would draw ``shard_seed`` from the system
    otherwise.

    Returns:
        ``job.output``.

    Raises:
        ValueError: neither or both of ``model`` and ``init_from`` are given.
    """
    if (job.model is None) == (job.init_from is None):
        raise ValueError("give either a model configuration or a model to start from")
    import lightning.pytorch as lightning
    import torch
    from nemo.collections.asr.models import ASRModel, EncDecCTCModel
    from omegaconf import OmegaConf

    torch.set_num_threads(job.threads)
    lightning.seed_everything(job.seed)
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=1,
        max_steps=job.steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,  # Lhotse's sampler shards by rank itself
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=[_reporter(job.steps, report, report_every)] if report else [],
    )
    optimiser = OmegaConf.create(_optimiser_config(job))
    if job.init_from is not None:
        model = ASRModel.restore_from(str(job.init_from), map_location="cpu", trainer=trainer)
        model.setup_training_data(OmegaConf.create(_loader_config(job, list(model.cfg.labels))))
        model.setup_optimization(optimiser)
    else:
        assert job.model is not None
        config = {**job.model, "optim": optimiser, "train_ds": _loader_config(job, list(job.model["labels"]))}
        model = EncDecCTCModel(cfg=OmegaConf.create(config), trainer=trainer)
    trainer.fit(model)
    _save(model, job.output)
    return job.output


def _loader_config(job: TrainingJob, labels: list[str]) -> dict[str, Any]:
    return {
        "use_lhotse": True,
        "input_cfg": [{"type": "lhotse", "cuts_path": str(path)} for path in job.cuts],
        "sample_rate": 16000,
        "labels": labels,
        "batch_size": job.batch_size,
        "shuffle": True,
        "num_workers": 0,
        "use_bucketing": True,
        "num_buckets": 6,
        "bucket_buffer_size": 2000,
        "num_cuts_for_bins_estimate": 500,
        "concurrent_bucketing": False,
        "shuffle_buffer_size": 4000,
        "seed": job.seed,
        "shard_seed": job.seed,
    }


def _optimiser_config(job: TrainingJob) -> dict[str, Any]:
    return {
        "name": "adamw",
        "lr": job.learning_rate,
        **job.optimiser,
        "sched": {
            "name": "CosineAnnealing",
            "warmup_steps": job.warmup_steps,
            "min_lr": job.learning_rate * job.final_learning_rate,
            "max_steps": job.steps,
        },
    }


def _save(model: Any, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.stem}.partial.nemo")
    model.save_to(str(partial))
    os.replace(partial, output)


def _reporter(steps: int, report: Report, every: int) -> Any:
    import lightning.pytorch as lightning

    class Reporter(lightning.Callback):
        """Passes the training loss on."""

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step % every == 0 or trainer.global_step == steps:
                report(trainer.global_step, steps, float(outputs["loss"]))

    return Reporter()
