"""Trains models that say which class an utterance is of, through NeMo, reproducibly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import CorpusError
from .jobs import Job, Report, is_first_process, with_fewer_workers
from .trainer import make_trainer, optimiser_config, reporter, save_model

if TYPE_CHECKING:
    from .classifier_data import LabelledCuts

_PARTS = ("preprocessor", "encoder", "decoder")


@dataclass(frozen=True)
class ClassifierJob(Job):
    """A classifier to train: which domain, speaker, language or word an utterance is of.

    Attributes:
        output: the ``.nemo`` to write; it appears when training is done.
        cuts: Lhotse cut manifests to train on, mixed in proportion to their size.
        model: NeMo configuration of an ``EncDecSpeakerLabelModel``: ``preprocessor``, which may be fused encoders
            (:class:`~nemo_merge.fusion.FusedUpstreamPreprocessor`), ``encoder``, ``decoder``, whose ``num_classes`` is
            filled in, and ``loss``, by default cross entropy; ``loss.weight: auto`` evens out the classes.
        label: what is told apart: ``speaker``, ``language``, ``gender`` or ``text`` of the supervisions, or a custom
            field of supervisions or cuts, such as ``domain``.
        steps: number of optimiser steps.
        learning_rate: peak of the schedule; it warms up linearly and falls as a cosine.
        labels: all classes in the order of the model's outputs; by default those found, sorted.
        warmup_steps: length of the warm-up.
        final_learning_rate: end of the schedule, as a share of the peak.
        batch_size: utterances in a batch of one process.
        seed: of the weights and of the order of the data.
        workers: processes that train together (data parallel); their batches add up.
        optimiser: further arguments of AdamW.
    """

    kind: ClassVar[str] = "classifier"

    output: str | Path
    cuts: Sequence[str | Path]
    model: Mapping[str, Any]
    label: str
    steps: int
    learning_rate: float
    labels: Sequence[str] | None = None
    warmup_steps: int = 20
    final_learning_rate: float = 0.01
    batch_size: int = 16
    seed: int = 0
    workers: int = 1
    optimiser: Mapping[str, Any] = field(default_factory=lambda: {"betas": [0.9, 0.98], "weight_decay": 1e-3})

    @property
    def processes(self) -> int:
        return self.workers

    def placed(self, gpus: int | None, resume: bool) -> ClassifierJob:
        """With fewer GPUs than workers, as many workers as share out the utterances of a step evenly."""
        return with_fewer_workers(self, gpus)

    def check(self) -> None:
        """Finds what is wrong with the settings, before any data is read.

        Raises:
            ConfigError: with every problem found.
        """
        from .checks import refuse, short_training

        problems = list(short_training(self))
        if self.batch_size == 1:
            problems.append("batch_size=1: batch normalisation needs 2 utterances or more")
        if missing := [name for name in _PARTS if not isinstance(self.model.get(name), Mapping)]:
            problems.append(f"model: has no {', '.join(missing)}")
        if not isinstance(self.label, str) or not self.label:
            problems.append(f"label={self.label!r} is no name of a field")
        labels = self.labels
        if labels is not None and (not isinstance(labels, list | tuple) or len({*map(str, labels)}) < len(labels)):
            problems.append(f"labels={labels!r} is not a list of different classes")
        refuse(problems, f"classifier {self.output}")

    def run(self, report: Report) -> None:
        train_classifier(self, report)


def train_classifier(job: ClassifierJob, report: Report | None = None) -> Path:
    """Trains a classifier with Lightning and NeMo's Lhotse loader and saves it, with the names of its classes.

    The same job gives the same weights on the same machine. Under torchrun, all processes of the job call this.

    Returns:
        Path of the ``.nemo``.

    Raises:
        ConfigError: a setting is wrong, or ``labels`` lacks a class.
        CorpusError: a cut has no label or is too short, or there are fewer than two classes.
        AudioError: a cut has several channels.
    """
    job.check()
    from .classifier_data import make_loader, read_labelled

    data = read_labelled(job)
    import lightning.pytorch as lightning
    import torch
    from nemo.collections.asr.models import EncDecSpeakerLabelModel
    from omegaconf import OmegaConf, open_dict

    from .continuation import own_generators
    from .fused_models import accept_fused_configuration
    from .nemo_recogniser import sample_rate_of

    torch.set_num_threads(1)
    lightning.seed_everything(job.seed, verbose=False)
    accept_fused_configuration(job.model)
    output = Path(job.output)
    trainer = make_trainer([reporter(output.stem, job.steps, report)] if report else [], max_steps=job.steps)
    config = OmegaConf.create(_configuration(job, data))
    rate = sample_rate_of(config)
    model = EncDecSpeakerLabelModel(cfg=config, trainer=trainer)
    with open_dict(model.cfg):  # NeMo's own get_label and infer_file read them here
        model.cfg.train_ds = {"manifest_filepath": None, "sample_rate": rate, "labels": data.labels}
    for generator in own_generators(model):
        generator.seed(job.seed)
    _check_shortest(model, data, rate)
    model._train_dl = make_loader(job, data, rate, trainer.global_rank, trainer.world_size)
    trainer.fit(model)
    if is_first_process():
        save_model(model, output)
    return output


def _configuration(job: ClassifierJob, data: LabelledCuts) -> dict[str, Any]:
    """NeMo's, with what the data says."""
    data_sets = ("train_ds", "validation_ds", "test_ds")  # NeMo would look for manifests
    config = {key: value for key, value in job.model.items() if key not in data_sets}
    config["decoder"] = {**job.model["decoder"], "num_classes": len(data.labels)}
    loss = config.pop("loss", None)
    if loss is not None:
        even = [data.total / (len(data.labels) * max(1, count)) for count in data.counts.values()]
        config["loss"] = {**loss, "weight": even} if loss.get("weight") == "auto" else loss
    return {**config, "labels": data.labels, "optim": optimiser_config(job)}


def _check_shortest(model: Any, data: LabelledCuts, rate: int) -> None:
    """Statistics over one frame are not numbers, and would make all weights so."""
    import torch
    from lhotse import CutSet
    from lhotse.dataset.collation import collate_audio

    audio, lengths = collate_audio(CutSet.from_cuts([data.shortest]).resample(rate))
    model.eval()
    with torch.no_grad():
        logits, _ = model(input_signal=audio, input_signal_length=lengths)
    model.train()
    if not logits.isfinite().all():
        raise CorpusError(
            f"cut {data.shortest.id}: {data.shortest.duration} s are too short for the model, whose outputs are not "
            "finite; leave it out"
        )
