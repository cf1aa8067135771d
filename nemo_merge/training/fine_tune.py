"""Fine-tunes any NeMo speech recogniser through NeMo's own trainer: the whole model, a part of it, or an adapter.

What is trained, on what and how long is one :class:`FineTuningJob`, which a YAML file says (``nemo-merge finetune``)
and a process of its own does, or several under torchrun or SLURM. The same job gives the same weights: NeMo's loader
gets a seed for its shards, and every step draws its noise (dropout, SpecAugment, dither, posterior samples) from a seed
of its own, so that a run that was interrupted and resumed ends like one that was not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ConfigError
from .jobs import Job, Report, is_first_process, shared_out
from .sources import Source, SourceLike, mix, read_source
from .trainer import loader_config, make_trainer, reporter

if TYPE_CHECKING:
    from .outcome import Outcome

ADAPTERS = ("lora", "bayesian_lora")
PARTS = ("full", "encoder", "decoder", *ADAPTERS)


@dataclass(frozen=True)
class FineTuningJob(Job):
    """A model to fine-tune.

    Attributes:
        base: ``.nemo`` to start from.
        output: ``.nemo`` to write, or for adapters also a folder in PEFT's format; it appears when training is done.
        train: sources of speech with transcripts: paths of Lhotse cuts, NeMo manifests or Lhotse shards, mappings
            ``{path, weight, tags}``, or entries of NeMo's ``input_cfg``. Several are mixed by their weights.
        validation: development sets by name, a source each.
        trainable: ``full``, ``encoder``, ``decoder`` (all but the encoder), ``lora``, ``bayesian_lora``, or regular
            expressions, one of which must match in the name of a parameter for it to be trained.
        labels: characters that the model must know: those that the base lacks get outputs of their own
            (:mod:`~nemo_merge.training.new_labels`); for models over characters.
        adapter: settings of the adapter: ``r``, ``lora_alpha``, ``target_modules`` ..., for ``bayesian_lora`` those of
            :class:`~nemo_merge.adapters.BayesianLoraConfig`.
        regulariser: what holds the model near its base (:mod:`~nemo_merge.training.regularisers`): ``{name: l2, ...}``,
            ``l2_sp`` or ``ewc``.
        scale: factor c of what was learnt, in (0, 1]: ``base + c (trained - base)`` is saved (Speech-FT,
            arXiv:2502.12672).
        optim: optimiser and schedule in NeMo's words: ``name``, ``lr``, ..., ``sched: {name, warmup_steps, ...}``.
        steps: optimiser steps.
        epochs: passes over the data instead of steps.
        batch_size: utterances in a batch of one process.
        batch_duration: seconds of audio in a batch of one process instead.
        loader: further settings of NeMo's Lhotse loader (``max_duration``, ``num_workers``, ``num_buckets`` ...).
        accumulate: batches that make one step.
        gradient_clip: largest norm of the gradient; 0 for none.
        precision: of the arithmetic, in Lightning's words: ``32-true``, ``bf16-mixed`` ...
        accelerator: ``auto``, ``cpu`` or ``gpu``.
        devices: processes on each machine; their batches add up.
        num_nodes: machines, which torchrun or SLURM must have started.
        strategy: Lightning's; ``ddp`` for several processes by default.
        seed: of the order of the data and of all noise.
        spec_augment: whether to mask features in training; a mapping gives NeMo's settings; the base's by default.
        validate_every: steps between validations; a tenth of the steps by default, or an epoch.
        select: ``val_loss`` or ``val_wer``: keep the weights with the best mean over the development sets.
        patience: validations without a better value after which training stops.
        checkpoint_every: steps between checkpoints from which an interrupted run goes on.
        keep_checkpoints: number of best checkpoints to keep beside the output, for example to average them.
        exp_manager: settings of NeMo's ``exp_manager``, for its loggers.
        resume: go on with an interrupted run of the same job.
        overwrite: replace an output that exists.
    """

    kind: ClassVar[str] = "fine_tune"

    base: str | Path
    output: str | Path
    train: Sequence[SourceLike]
    validation: Mapping[str, SourceLike] = field(default_factory=dict)
    trainable: str | Sequence[str] = "full"
    labels: Sequence[str] = field(default_factory=list)
    adapter: Mapping[str, Any] = field(default_factory=dict)
    regulariser: Mapping[str, Any] | None = None
    scale: float = 1.0
    optim: Mapping[str, Any] = field(default_factory=lambda: {"name": "adamw", "lr": 1e-4, "weight_decay": 1e-3})
    steps: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    batch_duration: float | None = None
    loader: Mapping[str, Any] = field(default_factory=dict)
    accumulate: int = 1
    gradient_clip: float = 1.0
    precision: str | int = "32-true"
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str | None = None
    seed: int = 0
    spec_augment: bool | Mapping[str, Any] | None = None
    validate_every: int | None = None
    select: str | None = None
    patience: int | None = None
    checkpoint_every: int | None = None
    keep_checkpoints: int = 0
    exp_manager: Mapping[str, Any] | None = None
    resume: bool = True
    overwrite: bool = False

    @property
    def processes(self) -> int:
        return self.devices

    @property
    def nodes(self) -> int:
        return self.num_nodes

    def placed(self, gpus: int | None, resume: bool) -> FineTuningJob:
        """With fewer GPUs than devices, as many batches in turn as there would have been side by side."""
        return shared_out(self, gpus, resume)

    @property
    def trains_adapter(self) -> bool:
        """Whether the base's own weights stay as they are."""
        return self.trainable in ADAPTERS

    @property
    def checkpoints(self) -> Path:
        """Folder for checkpoints of training, beside the output."""
        output = Path(self.output)
        return output.with_name(f"{output.stem if output.suffix == '.nemo' else output.name}.checkpoints")

    def sources(self) -> list[Source]:
        """What to train on.

        Raises:
            ConfigError: a source cannot be used.
        """
        return [read_source(value, f"train[{index}]") for index, value in enumerate(self.train)]

    def fingerprint(self) -> str:
        """What tells its checkpoints from those of a job that would give other weights."""
        from .repeatable import fingerprint

        return fingerprint(self)

    def check(self, shown: str = "fine-tuning") -> None:
        """Finds what stands against it before NeMo is imported.

        Args:
            shown: what messages call it, for example its file.

        Raises:
            ConfigError: with every problem found.
        """
        from .checks import check_job

        check_job(self, shown)

    def run(self, report: Report) -> None:
        fine_tune(self, report)


def fine_tune(job: FineTuningJob, report: Report | None = None) -> Outcome:
    """Does a job in this process; under torchrun or SLURM, all processes call this.

    Args:
        job: what to do; it is checked first.
        report: called with a line at a time.

    Returns:
        What came out; the output is there when the first process returns.

    Raises:
        ConfigError: the job is not possible, with everything that stands against it.
        OutputError: the output exists or cannot be written.
    """
    from .checks import check_job

    check_job(job)
    import lightning.pytorch as lightning
    import torch
    from nemo.collections.asr.models import ASRModel
    from omegaconf import OmegaConf, open_dict

    from .continuation import Continuation
    from .feasibility import check_feasible
    from .fused_models import accept_fused
    from .new_labels import add_labels
    from .outcome import finish
    from .regulariser_settings import add_regulariser, base_fisher
    from .repeatable import checkpoint_callbacks, forget, resumable_checkpoint
    from .trainable import make_trainable
    from .validation import add_validation

    tell = report or (lambda line: None)
    torch.set_num_threads(1)
    lightning.seed_everything(job.seed, verbose=False)
    continuation = Continuation(job)
    name = Path(job.output).name.removesuffix(".nemo")
    callbacks = [continuation, *checkpoint_callbacks(job), reporter(name, job.steps, tell)]
    trainer = make_trainer(callbacks, **_trainer_settings(job))
    if job.exp_manager is not None:
        _manage(trainer, job.exp_manager)
    accept_fused(Path(job.base))
    model = ASRModel.restore_from(str(job.base), map_location="cpu", trainer=trainer)
    if job.labels:
        add_labels(model, job.labels, tell)
    _set_augmentation(model, job.spec_augment)
    loader = _loader(job, model)
    check_feasible(model, loader, tell)
    partly = job.scale != 1.0 and Path(job.output).suffix == ".nemo"
    before = {key: value.clone() for key, value in model.state_dict().items()} if partly else None
    fisher = base_fisher(job, model, tell)  # before there are adapters
    with open_dict(model.cfg):
        model.cfg.optim = OmegaConf.create(dict(job.optim))
        model.cfg.pop("optim_param_groups", None)
    lightning.seed_everything(
        job.seed, verbose=False
    )  # adapters start alike whether the information was estimated or read
    make_trainable(job, model)
    add_regulariser(job, model, fisher)
    model.setup_training_data(OmegaConf.create(loader))
    continuation.follow(model)
    add_validation(job, model, loader, tell)
    resumed = resumable_checkpoint(job)
    if resumed is not None:
        tell(f"{name}: going on with {resumed}")
    elif is_first_process():
        forget(job)
    trainer.fit(model, ckpt_path=resumed)
    return finish(job, model, trainer, before, tell, write=is_first_process())


def _trainer_settings(job: FineTuningJob) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "devices": job.devices,
        "num_nodes": job.num_nodes,
        "accelerator": job.accelerator,
        "precision": job.precision,
        "max_steps": job.steps if job.steps is not None else -1,
        "max_epochs": job.epochs if job.epochs is not None else -1,
        "accumulate_grad_batches": job.accumulate,
        "gradient_clip_val": job.gradient_clip or None,
        "enable_checkpointing": True,
    }
    if job.strategy is not None:
        settings["strategy"] = job.strategy
    if job.steps is not None and any(source.endless for source in job.sources()):
        settings["limit_train_batches"] = job.steps * job.accumulate  # NeMo asks endless shards for their number
    if job.validation:
        settings["limit_val_batches"] = 1.0
        if (every := job.validate_every or (job.steps and max(1, job.steps // 10))) is not None:
            settings |= {"val_check_interval": every * job.accumulate, "check_val_every_n_epoch": None}
    return settings


def _loader(job: FineTuningJob, model: Any) -> dict[str, Any]:
    """Settings of the loader for training; what the base was trained with tells how its data was read."""
    from .loading import check_loader, inherited

    options = {**inherited(model), **job.loader}
    if job.batch_duration is not None:
        options["batch_duration"] = job.batch_duration
    if job.batch_size is not None or job.batch_duration is None:
        options["batch_size"] = job.batch_size or 16
    check_loader(options)
    return loader_config(mix(job.sources()), job.seed, **options)


def _set_augmentation(model: Any, wanted: bool | Mapping[str, Any] | None) -> None:
    """Masking of features in training: as in the base, off, or by settings of NeMo's module."""
    if wanted is None or (wanted is True and getattr(model, "spec_augmentation", None) is not None):
        return
    if wanted is False:
        model.spec_augmentation = None
        return
    if wanted is True:
        raise ConfigError("spec_augment=true: the base has no SpecAugment; give its settings, such as {freq_masks: 2}")
    from nemo.collections.asr.modules import SpectrogramAugmentation

    try:
        model.spec_augmentation = SpectrogramAugmentation(**wanted)
    except TypeError as error:
        raise ConfigError(f"spec_augment: {error}") from error


def _manage(trainer: Any, settings: Mapping[str, Any]) -> None:
    """NeMo's ``exp_manager`` for loggers; checkpoints are this module's."""
    from nemo.utils.exp_manager import exp_manager
    from omegaconf import OmegaConf

    own = {"create_checkpoint_callback": False, "resume_if_exists": False}
    exp_manager(trainer, OmegaConf.create({"exp_manager": {**settings, **own}}).exp_manager)
