"""Utterances with a label each, for classifiers. Importing this imports torch, not NeMo."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import AudioError, ConfigError, CorpusError
from .cut_labels import label_of
from .sources import mix, read_source
from .trainer import loader_config

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from .classifier import ClassifierJob

_BUCKETS = 6
_BATCHES = 4  # in a bucket, at least: what is left of a bucket at the end of an epoch is not used


@dataclass(frozen=True)
class LabelledCuts:
    """What is known of the data when it was read once.

    Attributes:
        counts: utterances by class, in the order of the model's outputs.
        shortest: the shortest cut.
    """

    counts: Mapping[str, int]
    shortest: Any

    @property
    def labels(self) -> list[str]:
        """The classes."""
        return list(self.counts)

    @property
    def total(self) -> int:
        """Number of utterances."""
        return sum(self.counts.values())


def read_labelled(job: ClassifierJob) -> LabelledCuts:
    """Reads all cuts of a job and their labels, but no audio.

    Raises:
        ConfigError: a file holds no Lhotse cuts, or ``labels`` lacks a class.
        CorpusError: a cut has no label or several, or there are fewer than two classes.
        AudioError: a cut has several channels.
    """
    from lhotse import CutSet

    known = None if job.labels is None else [str(label) for label in job.labels]
    counts: Counter[str] = Counter()
    shortest: Any = None
    for index, path in enumerate(job.cuts):
        if read_source(path, f"cuts[{index}]").kind != "lhotse":
            raise ConfigError(f"cuts[{index}]: {path} holds no Lhotse cuts")
        for cut in CutSet.from_file(path):
            label = str(label_of(cut, job.label))
            if known is not None and label not in known:
                raise ConfigError(f"{path}: cut {cut.id} is of class {label!r}, which labels={known} lacks")
            if cut.num_channels != 1:
                raise AudioError(
                    f"{path}: cut {cut.id} has {cut.num_channels} channels; choose one (cut.with_channels)"
                )
            counts[label] += 1
            shortest = cut if shortest is None or cut.duration < shortest.duration else shortest
    if len(counts) < 2:
        raise CorpusError(f"all {counts.total()} cuts are of one class, {next(iter(counts))!r}; two are told apart")
    return LabelledCuts({label: counts[label] for label in known or sorted(counts)}, shortest)


class LabelDataset(torch.utils.data.Dataset):
    """Makes batches of Lhotse cuts, as ``EncDecSpeakerLabelModel`` takes them.

    Args:
        label: what is told apart, see :func:`~nemo_merge.training.cut_labels.label_of`.
        labels: the classes, in the order of the model's outputs.
    """

    def __init__(self, label: str, labels: Sequence[str]) -> None:
        self.label = label
        self.numbers = {name: number for number, name in enumerate(labels)}

    def __getitem__(
        self, cuts: Any
    ) -> tuple[
        Float[torch.Tensor, "batch samples"],
        Int[torch.Tensor, " batch"],
        Int[torch.Tensor, " batch"],
        Int[torch.Tensor, " batch"],
    ]:
        """Samples, their numbers, classes, and the lengths of these, which are 1."""
        from lhotse.dataset.collation import collate_audio

        audio, lengths = collate_audio(cuts)
        classes = torch.tensor([self.numbers[str(label_of(cut, self.label))] for cut in cuts])
        return audio, lengths, classes, torch.ones_like(classes)


def make_loader(job: ClassifierJob, data: LabelledCuts, rate: int, rank: int, world_size: int) -> Any:
    """NeMo's Lhotse loader, with as many buckets as the data fills, and whole batches only.

    Batches of one utterance, which the end of an epoch may bring, are nothing for batch normalisation.

    Raises:
        CorpusError: the processes of the job would have fewer than two utterances each.
    """
    from nemo.collections.common.data.lhotse import get_lhotse_dataloader_from_config
    from omegaconf import OmegaConf

    size = min(job.batch_size, data.total // world_size)
    if size < 2:
        raise CorpusError(f"{data.total} cuts make no batches of 2 for {world_size} processes; give more data")
    buckets = min(_BUCKETS, data.total // (_BATCHES * size * world_size))
    sources = [read_source(path, f"cuts[{index}]") for index, path in enumerate(job.cuts)]
    options = {
        "sample_rate": rate,
        "batch_size": size,
        "drop_last": True,
        "use_bucketing": buckets > 1,
        "num_buckets": max(1, buckets),
    }
    config = OmegaConf.create(loader_config(mix(sources), job.seed, **options))
    return get_lhotse_dataloader_from_config(config, rank, world_size, LabelDataset(job.label, data.labels))
