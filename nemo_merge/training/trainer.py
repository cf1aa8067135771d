"""What all training shares: the trainer, the loader's settings, progress, and models that appear whole."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from .jobs import Report


class Scheduled(Protocol):
    """A job with the fields of a schedule."""

    @property
    def steps(self) -> int: ...

    @property
    def learning_rate(self) -> float: ...

    @property
    def warmup_steps(self) -> int: ...

    @property
    def final_learning_rate(self) -> float: ...

    @property
    def optimiser(self) -> Mapping[str, Any]: ...


def make_trainer(callbacks: Sequence[Any], *, devices: int = 1, num_nodes: int = 1, **arguments: Any) -> Any:
    """A Lightning trainer over the processes that torchrun or SLURM started, or over this one.

    Args:
        callbacks: Lightning callbacks.
        devices: processes on each machine; torchrun's own number goes first.
        num_nodes: machines.
        **arguments: of ``lightning.Trainer``; they replace the settings made here.
    """
    import lightning.pytorch as lightning

    if "LOCAL_WORLD_SIZE" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // devices
    settings = {
        "accelerator": "auto",
        "devices": devices,
        "num_nodes": num_nodes,
        "strategy": "ddp" if devices * num_nodes > 1 else "auto",
        "max_epochs": -1,
        "gradient_clip_val": 1.0,
        "use_distributed_sampler": False,  # Lhotse's sampler shards by rank itself
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }
    return lightning.Trainer(**{**settings, **arguments}, callbacks=list(callbacks))


def loader_config(
    input_cfg: Sequence[Mapping[str, Any]], seed: int, *, sample_rate: int, **options: Any
) -> dict[str, Any]:
    """Settings of NeMo's Lhotse loader for training; the same settings give the same batches.

    Args:
        input_cfg: sources, as :func:`~nemo_merge.training.sources.mix` puts them together.
        seed: of the order of the data. NeMo would draw ``shard_seed`` from the system.
        sample_rate: that the model hears; audio of another rate is resampled.
        **options: further settings; they replace those made here.
    """
    return {
        "use_lhotse": True,
        "input_cfg": [dict(item) for item in input_cfg],
        "sample_rate": sample_rate,
        "shuffle": True,
        "num_workers": 0,
        "use_bucketing": True,
        "num_buckets": 6,
        "bucket_buffer_size": 2000,
        "num_cuts_for_bins_estimate": 500,
        "concurrent_bucketing": False,
        "shuffle_buffer_size": 4000,
        "seed": seed,
        "shard_seed": seed,
        **options,
    }


def optimiser_config(job: Scheduled) -> dict[str, Any]:
    """AdamW in NeMo's words, with a linear warm-up and a cosine."""
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


def save_model(model: Any, output: Path) -> None:
    """Saves a NeMo model; the file appears whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.stem}.partial.nemo")
    try:
        model.save_to(str(partial))
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)


def reporter(name: str, steps: int | None, report: Report) -> Any:
    """A callback that tells how far training is: eight times, or after every epoch where the steps are not known."""
    import lightning.pytorch as lightning

    class Reporter(lightning.Callback):
        """Counts optimiser steps and extrapolates the time."""

        started, first = 0.0, 0
        told = -1

        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.started, self.first = time.monotonic(), trainer.global_step

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            step = trainer.global_step
            if steps is not None and step % max(1, steps // 8) == 0 and step not in (self.told, self.first):
                self.told = step  # several batches may make one step
                left = (time.monotonic() - self.started) / (step - self.first) * (steps - step)
                report(f"{name}: step {step} of {steps}, loss {float(outputs['loss']):.3f}, {left:.0f} s left")

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if steps is None:
                report(f"{name}: epoch {trainer.current_epoch + 1} of {trainer.max_epochs}, step {trainer.global_step}")

    return Reporter()
