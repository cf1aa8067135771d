"""Trains and fine-tunes character CTC models through NeMo, reproducibly."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from .jobs import Job, Report, is_first_process, with_fewer_workers
from .sources import mix, read_source
from .trainer import loader_config, make_trainer, optimiser_config, reporter, save_model


@dataclass(frozen=True)
class TrainingJob(Job):
    """One model to train.

    Attributes:
        output: the ``.nemo`` to write; it appears when training is done.
        cuts: Lhotse cut manifests to train on, mixed in proportion to their size.
        model: NeMo configuration of a new model (``preprocessor``, ``encoder``, ``decoder``, ``labels`` ...), whose
            preprocessor may be fused encoders (:class:`~nemo_merge.fusion.FusedUpstreamPreprocessor`).
        init_from: ``.nemo`` to fine-tune instead.
        steps: number of optimiser steps.
        learning_rate: peak of the schedule; it warms up linearly and falls as a cosine.
        warmup_steps: length of the warm-up.
        final_learning_rate: end of the schedule, as a share of the peak.
        batch_size: utterances in a batch of one process.
        seed: of the weights and of the order of the data.
        workers: processes that train together (data parallel); their batches add up.
        optimiser: further arguments of AdamW.
        checkpoint_every: steps between checkpoints from which an interrupted run goes on; every step then draws its
            noise from a seed of its own, so that the weights differ from those of a run without checkpoints.
        resume: go on with an interrupted run of the same job.
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
    # How it is done, rather than what: no part of what recipes tell jobs by.
    checkpoint_every: int | None = field(default=None, repr=False)
    resume: bool = field(default=True, repr=False)

    def __post_init__(self) -> None:
        if (self.model is None) == (self.init_from is None):
            raise ValueError("give either a model configuration or a model to start from")

    @property
    def processes(self) -> int:
        return self.workers

    def placed(self, gpus: int | None, resume: bool) -> TrainingJob:
        """With fewer GPUs than workers, as many workers as share out the utterances of a step evenly."""
        job = self if resume else replace(self, resume=False)
        return with_fewer_workers(job, gpus)

    @property
    def checkpoints(self) -> Path:
        """Folder for checkpoints of training, beside the output."""
        output = Path(self.output)
        return output.with_name(f"{output.stem}.checkpoints")

    def fingerprint(self) -> str:
        """What tells its checkpoints from those of a job that would give other weights."""
        from ..checkpoints._digests import sha256_of
        from .fused_models import encoder_records

        read = [*self.cuts, *([self.init_from] if self.init_from else [])]
        files = [*(sha256_of(Path(file)) for file in read), *encoder_records(self.model or {})]
        settings = {**asdict(self), "output": "", "resume": True, "files": files}
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def check(self) -> None:
        """Finds what is wrong with the settings, before any data is read.

        Raises:
            ConfigError: with every problem found.
        """
        from .checks import numbers, refuse, short_training

        problems = [*short_training(self), *numbers(self, ("checkpoint_every",), ("checkpoint_every",), ())]
        refuse(problems, f"training of {self.output}")

    def run(self, report: Report) -> None:
        train(self, report)


def train(job: TrainingJob, report: Report | None = None) -> Path:
    """Trains a model with Lightning and Lhotse's bucketing sampler and saves it.

    An interrupted run goes on from its last checkpoint, if it keeps some. The same job gives the same weights on the
    same machine: NeMo's loader would draw ``shard_seed`` from the system otherwise. Under torchrun, all processes of
    the job call this.

    Returns:
        Path of the ``.nemo``.

    Raises:
        ConfigError: a setting is wrong.
    """
    job.check()
    import lightning.pytorch as lightning
    import torch
    from nemo.collections.asr.models import ASRModel, EncDecCTCModel
    from omegaconf import OmegaConf

    from .continuation import Continuation, own_generators
    from .fused_models import accept_fused, accept_fused_configuration
    from .nemo_recogniser import sample_rate_of

    torch.set_num_threads(1)
    lightning.seed_everything(job.seed)
    name = Path(job.output).stem
    callbacks: list[Any] = [reporter(name, job.steps, report)] if report else []
    continuation = None
    if job.checkpoint_every is not None:
        from .repeatable import last_checkpoint

        continuation = Continuation(job)
        callbacks = [continuation, last_checkpoint(job), *callbacks]
    trainer = make_trainer(callbacks, max_steps=job.steps, enable_checkpointing=continuation is not None)
    optimiser = OmegaConf.create(optimiser_config(job))
    if job.init_from is not None:
        accept_fused(Path(job.init_from))
        model = ASRModel.restore_from(str(job.init_from), map_location="cpu", trainer=trainer)
        data = _loader_config(job, list(model.cfg.labels), sample_rate_of(model.cfg))
        model.setup_training_data(OmegaConf.create(data))
        model.setup_optimization(optimiser)
    else:
        assert job.model is not None
        accept_fused_configuration(job.model)
        config = OmegaConf.create({**job.model, "optim": optimiser})
        config.train_ds = _loader_config(job, list(job.model["labels"]), sample_rate_of(config))
        model = EncDecCTCModel(cfg=config, trainer=trainer)
    for generator in own_generators(model):
        generator.seed(job.seed)
    resumed = None
    if continuation is not None:
        continuation.follow(model)
        resumed = _resumed(job, name, report)
    trainer.fit(model, ckpt_path=resumed)
    output = Path(job.output)
    if is_first_process():
        save_model(model, output)
        shutil.rmtree(job.checkpoints, ignore_errors=True)
    return output


def _resumed(job: TrainingJob, name: str, report: Report | None) -> str | None:
    """The checkpoint to go on from; without one, what an earlier run left is removed."""
    from .repeatable import forget, resumable_checkpoint

    found = resumable_checkpoint(job)
    if found is None and is_first_process():
        forget(job)
    elif found is not None and report is not None:
        report(f"{name}: going on with {found}")
    return found


def _loader_config(job: TrainingJob, labels: list[str], rate: int) -> dict[str, Any]:
    sources = [read_source(path, f"cuts[{index}]") for index, path in enumerate(job.cuts)]
    return loader_config(mix(sources), job.seed, sample_rate=rate, labels=labels, batch_size=job.batch_size)
