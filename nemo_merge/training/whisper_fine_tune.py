"""Fine-tunes Hugging Face's Whisper through transformers' trainer: the whole model, a part of it, or an adapter.

The counterpart of :mod:`~nemo_merge.training.fine_tune` for folders of transformers: the same settings where they mean
the same, the same data, and runs that can be repeated and resumed. What comes out is a folder like the base's, which
merges, decodes and loads as the base does.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .fine_tune import ADAPTERS
from .jobs import Job, Report, is_first_process, shared_out
from .sources import Source, SourceLike, read_source

if TYPE_CHECKING:
    from .outcome import Outcome

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
STORED = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class WhisperFineTuningJob(Job):
    """A Whisper to fine-tune.

    Attributes:
        base: folder as ``save_pretrained`` writes it, or ``owner/name`` of the Hugging Face hub, which is downloaded.
        output: folder to write: a Whisper, or an adapter in PEFT's format; it appears when training is done.
        train: sources of speech with transcripts: paths of Lhotse cuts or NeMo manifests, or mappings
            ``{path, weight, tags}``; ``tags`` may say ``lang`` and ``task`` of all utterances of a source.
        validation: development sets by name, a source each.
        revision: of a base from the hub.
        language: of utterances that say none.
        task: ``transcribe``, or ``translate`` where the texts are English translations; tags go before.
        trainable: ``full``, ``encoder``, ``decoder`` (all but the encoder), ``lora``, ``bayesian_lora``, or regular
            expressions, one of which must match in the name of a parameter for it to be trained.
        adapter: settings of the adapter, as for :class:`~nemo_merge.training.fine_tune.FineTuningJob`.
        merge_adapter: write a Whisper with the adapter folded in, rather than the adapter.
        optim: ``name`` of an optimiser of transformers, ``lr``, ``betas``, ``eps``, ``weight_decay``, and ``sched:
            {name, warmup_steps, ...}`` with a schedule of transformers and its arguments.
        steps: optimiser steps.
        epochs: passes over the data instead of steps.
        batch_size: utterances in a batch of one process. All are padded to what Whisper hears at once, 30 s.
        accumulate: batches that make one step.
        gradient_clip: largest norm of the gradient; 0 for none.
        precision: of the arithmetic: one of :data:`PRECISIONS`; weights and optimiser are float32 in any case.
        gradient_checkpointing: compute activations again rather than keep them: less memory, more time.
        accelerator: ``auto``, ``cpu`` or ``gpu``.
        devices: processes on each machine; their batches add up.
        num_nodes: machines, which torchrun must have started.
        workers: processes that read audio, for each process that trains.
        seed: of the order of the data and of all noise.
        spec_augment: whether to mask features in training; a mapping gives settings of ``WhisperConfig``, such as
            ``mask_time_prob``; as the base's configuration says by default.
        validate_every: steps between validations; a tenth of all by default.
        select: ``val_loss`` or ``val_wer``: keep the weights with the best mean over the development sets.
        text: profile of texts by which ``val_wer`` is counted, see ``nemo-merge score``.
        patience: validations without a better value after which training stops.
        checkpoint_every: steps between checkpoints from which an interrupted run goes on; with ``select``, they are
            made at every validation anyway.
        store: type of the stored weights: one of :data:`STORED`. Half precision rounds away small changes.
        trainer: further fields of ``transformers.TrainingArguments``, such as ``report_to`` or ``deepspeed``.
        resume: go on with an interrupted run of the same job.
        overwrite: replace an output that exists.
    """

    kind: ClassVar[str] = "whisper_fine_tune"

    base: str | Path
    output: str | Path
    train: Sequence[SourceLike]
    validation: Mapping[str, SourceLike] = field(default_factory=dict)
    revision: str | None = None
    language: str | None = None
    task: str = "transcribe"
    trainable: str | Sequence[str] = "full"
    adapter: Mapping[str, Any] = field(default_factory=dict)
    merge_adapter: bool = False
    optim: Mapping[str, Any] = field(default_factory=lambda: {"name": "adamw_torch", "lr": 1e-5, "weight_decay": 0.0})
    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 16
    accumulate: int = 1
    gradient_clip: float = 1.0
    precision: str = "32-true"
    gradient_checkpointing: bool = False
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    workers: int = 0
    seed: int = 0
    spec_augment: bool | Mapping[str, Any] | None = None
    validate_every: int | None = None
    select: str | None = None
    text: str = "whisper_basic"
    patience: int | None = None
    checkpoint_every: int | None = None
    store: str = "float32"
    trainer: Mapping[str, Any] = field(default_factory=dict)
    resume: bool = True
    overwrite: bool = False

    @property
    def processes(self) -> int:
        return self.devices

    @property
    def nodes(self) -> int:
        return self.num_nodes

    def placed(self, gpus: int | None, resume: bool) -> WhisperFineTuningJob:
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
        return output.with_name(f"{output.name}.checkpoints")

    def sources(self) -> list[Source]:
        """What to train on.

        Raises:
            ConfigError: a source cannot be used.
        """
        return [read_source(value, f"train[{index}]") for index, value in enumerate(self.train)]

    def check(self, shown: str = "fine-tuning") -> None:
        """Finds what stands against it before transformers is imported.

        Args:
            shown: what messages call it, for example its file.

        Raises:
            ConfigError: with every problem found.
        """
        from .whisper_checks import check_whisper_job

        check_whisper_job(self, shown)

    def run(self, report: Report) -> None:
        fine_tune_whisper(self, report)


def fine_tune_whisper(job: WhisperFineTuningJob, report: Report | None = None) -> Outcome:
    """Does a job in this process; under torchrun, all processes call this.

    Args:
        job: what to do; it is checked first.
        report: called with a line at a time.

    Returns:
        What came out; the output is there when the first process returns.

    Raises:
        ConfigError: the job is not possible, with everything that stands against it.
        CheckpointError: the base cannot be fetched or loaded.
        OutputError: the output exists or cannot be written.
    """
    from .whisper_base import whisper_folder

    job.check()
    folder = whisper_folder(job.base, job.revision)
    job = dataclasses.replace(job, base=str(folder))
    import torch
    from transformers import set_seed

    from .whisper_arguments import arguments
    from .whisper_data import Collator, read_examples
    from .whisper_model import load_whisper
    from .whisper_outcome import finish
    from .whisper_trainer import WhisperTrainer, begin

    name = Path(job.output).name

    def tell(line: str) -> None:
        if report is not None:
            report(f"{name}: {line}")

    torch.set_num_threads(1)
    set_seed(job.seed)
    parts = load_whisper(folder)
    sets = {
        key: read_examples([read_source(value, f"validation.{key}")], job, parts, f"validation.{key}", tell)
        for key, value in job.validation.items()
    }
    data = read_examples(job.sources(), job, parts, "train", tell)
    made = arguments(job, len(data))
    parts.prepare(job)
    trainer = WhisperTrainer(job, parts, made, data, sets, Collator(parts), tell)
    resumed = begin(job, is_first_process())
    if resumed is not None:
        tell(f"going on with {resumed}")
    trainer.train(resume_from_checkpoint=resumed)
    outcome = finish(job, parts, trainer, tell, write=is_first_process())
    del trainer
    gc.collect()  # a trainer refers to itself: its optimiser would stay on the GPU when the next job begins
    return outcome
