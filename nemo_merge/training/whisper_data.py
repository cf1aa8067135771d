"""Utterances as Whisper is trained on them: features of what was said, and the tokens that it should write."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset, Sampler

from ..errors import AudioError, ConfigError, did_you_mean
from .jobs import Report
from .recogniser import TASKS
from .sources import Source
from .utterances import TOLERANCE, Utterance, load_samples, read_test_set

if TYPE_CHECKING:
    from .whisper_fine_tune import WhisperFineTuningJob
    from .whisper_model import WhisperParts

IGNORED = -100
"""Label of padding, which the loss leaves out."""


@dataclass(frozen=True)
class Example:
    """An utterance and what to write for it.

    Attributes:
        utterance: what to hear.
        labels: tokens, from the language's to the end's.
        language: as Whisper calls it; None for a Whisper of one language.
        task: ``transcribe`` or ``translate``.
        weight: share in the batches, where sources have weights.
    """

    utterance: Utterance
    labels: Sequence[int]
    language: str | None
    task: str
    weight: float | None = None


class Examples(Dataset[dict[str, Any]]):
    """Examples with their features, which are computed when they are asked for."""

    def __init__(self, examples: Sequence[Example], features: Any) -> None:
        self.examples, self.features = examples, features

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``input_features`` [mels, frames], ``attention_mask`` [frames], and ``labels``."""
        example = self.examples[index]
        rate = int(self.features.sampling_rate)
        try:
            samples = load_samples(example.utterance, rate)
        except AudioError as error:
            raise AudioError(f"utterance {example.utterance.id!r}: {error}") from error
        found = self.features(samples, sampling_rate=rate, return_tensors="pt", return_attention_mask=True)
        return {
            "input_features": found.input_features[0],
            "attention_mask": found.attention_mask[0],
            "labels": example.labels,
        }


class Collator:
    """Makes batches: ``input_features`` [batch, mels, frames], ``decoder_input_ids`` and ``labels`` [batch, tokens]."""

    def __init__(self, parts: WhisperParts) -> None:
        self.start, self.end = parts.start, parts.end

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(item["labels"]) for item in items)
        labels = torch.full((len(items), longest), IGNORED)
        given = torch.full((len(items), longest), self.end)
        for row, item in enumerate(items):
            tokens = torch.tensor(item["labels"])
            labels[row, : len(tokens)] = tokens
            given[row, : len(tokens)] = torch.cat([torch.tensor([self.start]), tokens[:-1]])
        return {
            "input_features": torch.stack([item["input_features"] for item in items]),
            "attention_mask": torch.stack([item["attention_mask"] for item in items]),
            "decoder_input_ids": given,
            "labels": labels,
        }


class Shuffled(Sampler[int]):
    """Every epoch's order from a seed of its own; with weights, examples are drawn with replacement.

    A source's weight is its share of the batches, so its examples share it among them.
    """

    def __init__(self, examples: Sequence[Example], seed: int) -> None:
        self.seed, self.epoch, self.count = seed, 0, len(examples)
        shares = [item.weight for item in examples if item.weight is not None]
        self.weights = torch.tensor(shares, dtype=torch.float64) if shares else None

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before every epoch, also the one in which a run goes on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.weights is None:
            yield from torch.randperm(self.count, generator=generator).tolist()
        else:
            yield from torch.multinomial(self.weights, self.count, True, generator=generator).tolist()


def read_examples(
    sources: Sequence[Source], job: WhisperFineTuningJob, parts: WhisperParts, place: str, report: Report
) -> Examples:
    """Reads what sources list; no audio is read.

    What Whisper cannot learn is left out and counted: utterances without a transcript, longer than it hears at once, or
    with more tokens than it can write, and those whose audio is missing.

    Args:
        sources: to read.
        job: says the language and task of utterances that do not say theirs.
        parts: gives the tokens.
        place: what messages call the sources.
        report: called if something is left out.

    Raises:
        ConfigError: a language or task that Whisper does not know, or nothing is left.
        AudioError: a manifest cannot be read.
    """
    examples: list[Example] = []
    left_out: dict[str, list[str]] = {}
    for number, source in enumerate(sources):
        where = f"{place}[{number}]" if len(sources) > 1 else place
        found = list(_read(source, job, parts, where, left_out))
        share = None if source.weight is None else source.weight / max(1, len(found))
        examples += [Example(*item, weight=share) for item in found]
    for reason, names in left_out.items():
        report(f"{place}: {len(names)} utterances are left out: {reason}, for example {names[0]}")
    if not examples:
        raise ConfigError(f"{place}: no utterance is left to use")
    return Examples(examples, parts.features)


def _read(
    source: Source, job: WhisperFineTuningJob, parts: WhisperParts, place: str, left_out: dict[str, list[str]]
) -> Iterator[tuple[Utterance, list[int], str | None, str]]:
    assert source.path is not None
    task = task_of(source, job, place)
    tag = next((str(source.tags[key]) for key in ("lang", "language", "source_lang") if source.tags.get(key)), None)
    most = int(parts.model.config.max_target_positions)
    listed = read_test_set(Path(source.path))
    for name in listed.skipped:
        left_out.setdefault(listed.skipped[name], []).append(name)
    for item in listed.utterances:
        language = parts.language(tag or item.lang or job.language, f"{place}: utterance {item.id!r}")
        labels = parts.labels(item.text or "", language, task)
        if item.text is None:
            left_out.setdefault("no transcript", []).append(item.id)
        elif item.duration is not None and item.duration > parts.longest + TOLERANCE:
            left_out.setdefault(f"longer than {parts.longest:g} s", []).append(item.id)
        elif len(labels) > most:
            left_out.setdefault(f"more than {most} tokens", []).append(item.id)
        else:
            yield item, labels, language, task


def task_of(source: Source, job: WhisperFineTuningJob, place: str) -> str:
    """What a source's texts are.

    Raises:
        ConfigError: no task of Whisper.
    """
    task = str(source.tags.get("task", job.task))
    if task not in TASKS:
        raise ConfigError(f"{place}: task={json.dumps(task)}{did_you_mean(task, TASKS)}")
    return task
