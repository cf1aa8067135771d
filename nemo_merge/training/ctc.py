"""Trains and fine-tunes character CTC models through NeMo, reproducibly."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from .jobs import Job, Report, is_first_process


@dataclass(frozen=True)
class TrainingJob(Job):
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
        batch_size: utterances in a batch of one process.
        seed: of the weights and of the order of the data.
        workers: processes that train together (data parallel); their batches add up.
        optimiser: further arguments of AdamW.
    """

    kind: ClassVar[str] = "train"

    output: str | Path
    cuts: Sequence[str | Path]
    steps: int
    learning_rate: float
    model: Mapping[str, Any] | None = None
    init_from: str | Path | None = None
    warmup_steps: int = 20
    final_learning_rate: float = 0.01
    batch_size: int = 16
    seed: int = 0
    workers: int = 1
    optimiser: Mapping[str, Any] = field(default_factory=lambda: {"betas": [0.9, 0.98], "weight_decay": 1e-3})

    def __post_init__(self) -> None:
        if (self.model is None) == (self.init_from is None):
            raise ValueError("give either a model configuration or a model to start from")

    @property
    def processes(self) -> int:
        return self.workers

    def run(self, report: Report) -> None:
        train(self, report)


def train(job: TrainingJob, report: Report | None = None) -> Path:
    """Trains a model with Lightning and Lhotse's bucketing sampler and saves it.

    The same job gives the same weights on the same machine: NeMo's loader would draw ``shard_seed`` from the system
    otherwise. Under torchrun, all processes of the job call this.

    Returns:
        Path of the ``.nemo``.
    """
    import lightning.pytorch as lightning
    import torch
    from nemo.collections.asr.models import ASRModel, EncDecCTCModel
    from omegaconf import OmegaConf

    torch.set_num_threads(1)
    lightning.seed_everything(job.seed)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        num_nodes=processes // int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        strategy="ddp" if processes > 1 else "auto",
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
        callbacks=[_reporter(Path(job.output).stem, job.steps, report)] if report else [],
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
    output = Path(job.output)
    if is_first_process():
        _save(model, output)
    return output


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


def _reporter(name: str, steps: int, report: Report) -> Any:
    import lightning.pytorch as lightning

    class Reporter(lightning.Callback):
        """Tells how far training is, eight times."""

        started = 0.0

        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.started = time.monotonic()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            step = trainer.global_step
            if step % max(1, steps // 8) == 0:
                left = (time.monotonic() - self.started) / step * (steps - step)
                report(f"{name}: step {step} of {steps}, loss {float(outputs['loss']):.3f}, {left:.0f} s left")

    return Reporter()
