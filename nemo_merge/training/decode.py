"""Decodes test sets with NeMo and Whisper models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from ..errors import AudioError, ConfigError, did_you_mean
from .decoding_run import DecodingRun, stop_at_any
from .fused_models import take_cache
from .jobs import Job, Report
from .recogniser import PRECISIONS, TASKS, Recogniser, RecogniserSettings, check_model, model_digest, open_recogniser
from .speech_activity import VadSettings
from .transcripts_file import Hypothesis, TranscriptsFile, only_writer, read_hypotheses
from .utterances import Channel, TestSet, read_test_set

__all__ = ["DecodingJob", "Hypothesis", "read_hypotheses", "transcribe"]

_NAMED = 20  # utterances that cannot be decoded and are named one by one


@dataclass(frozen=True)
class DecodingJob(Job):
    """Models to run over test sets.

    Attributes:
        models: ``.nemo`` files, or folders of Hugging Face's Whisper, by name.
        sets: Lhotse cuts, NeMo manifests or folders of audio, by name.
        output: folder; the hypotheses go to ``<output>/<model>/<set>.jsonl``.
        batch_size: utterances in a batch.
        batch_seconds: seconds in a batch, with padding; both limits hold.
        device: ``auto``, or as torch calls it.
        threads: of the processor, for one operation.
        language: of utterances that do not say theirs; for models with prompts.
        task, target_language, beam, decoder, precision, prompt: see
            :class:`~nemo_merge.training.recogniser.RecogniserSettings`.
        channel: of audio with several, or ``mix``.
        vad: cut recordings into segments of speech, see :class:`~nemo_merge.training.speech_activity.VadSettings`.
        strict: stop at an utterance that cannot be decoded, instead of leaving it out.
        overwrite: replace what other models, data or settings left; what the same left is continued in any case.
        progress: print how far it is, for the process that shows a bar.
        cache: folder of :func:`nemo_merge.fusion.cache_features`, for models that stand on fused encoders.
    """

    kind: ClassVar[str] = "decode"

    models: Mapping[str, str | Path]
    sets: Mapping[str, str | Path]
    output: str | Path
    batch_size: int = 32
    batch_seconds: float | None = None
    device: str = "auto"
    threads: int = 1
    language: str | None = None
    task: str = "transcribe"
    target_language: str | None = None
    beam: int | None = None
    decoder: str | None = None
    precision: str = "fp32"
    prompt: Mapping[str, str] = field(default_factory=dict)
    channel: Channel = None
    vad: Mapping[str, float] | None = None
    strict: bool = False
    overwrite: bool = False
    progress: bool = False
    cache: str | Path | None = None

    def run(self, report: Report) -> None:
        sets = {name: read_test_set(Path(path)) for name, path in self.sets.items()}
        for name, path in self.models.items():
            _decode(self, name, Path(path), sets, report)

    def check(self) -> None:
        """Finds what is wrong before a library is imported to run the models.

        Raises:
            NemoMergeError: a model or a test set is missing or damaged, or a setting is out of its range.
        """
        choices: dict[str, tuple[str, ...]] = {"task": TASKS, "precision": PRECISIONS, "decoder": ("ctc", "rnnt")}
        for key, known in choices.items():
            if (value := getattr(self, key)) is not None and value not in known:
                raise ConfigError(f"{key}={value!r}{did_you_mean(str(value), known)}")
        for key in ("batch_size", "batch_seconds", "beam", "threads"):
            if (value := getattr(self, key)) is not None and not value > 0:
                raise ConfigError(f"{key}={value!r} is not a positive number")
        settings = [item.name for item in fields(VadSettings)]
        for key, value in (self.vad or {}).items():
            if key not in settings:
                raise ConfigError(f"vad: there is no setting {key!r}{did_you_mean(key, settings)}")
            if not value >= 0 or (key == "longest" and not value >= 1):
                raise ConfigError(f"vad: {key}={value!r} is out of range")
        for path in self.models.values():
            check_model(Path(path))
        for name, source in self.sets.items():
            found = read_test_set(Path(source))
            if self.strict:
                stop_at_any(name, found.skipped)

    @property
    def _recogniser_settings(self) -> RecogniserSettings:
        return RecogniserSettings(**{item.name: getattr(self, item.name) for item in fields(RecogniserSettings)})

    def _made_with(self, model: str, data: str) -> dict[str, Any]:
        """Everything on which hypotheses depend."""
        names = ("language", "channel", "vad", *(item.name for item in fields(RecogniserSettings)))
        settings = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {"model": model, "data": data, "settings": settings}


def transcribe(
    model: str | Path, sets: Mapping[str, str | Path], output: Path, batch_size: int = 32
) -> dict[str, list[Hypothesis]]:
    """Transcribes test sets with one model, in this process, and writes a JSON lines file per set.

    Args:
        model: ``.nemo`` file, or folder of a Hugging Face Whisper.
        sets: Lhotse cuts, NeMo manifests or folders of audio, by the set's name.
        output: folder for ``<set>.jsonl``; what this model has decoded there before is read instead.
        batch_size: utterances in a batch.

    Returns:
        Hypotheses by set, in the order of the set.

    Raises:
        NemoMergeError: see :meth:`DecodingJob.check`; or the output was made by another model.
    """
    job = DecodingJob({output.name: model}, sets, output.parent, batch_size)
    return _decode(job, output.name, Path(model), {k: read_test_set(Path(v)) for k, v in sets.items()}, lambda _: None)


def _decode(
    job: DecodingJob, name: str, path: Path, sets: Mapping[str, TestSet], report: Report
) -> dict[str, list[Hypothesis]]:
    """Runs one model over all sets."""
    folder = Path(job.output) / name
    with only_writer(folder):
        return _decode_into(folder, job, name, path, sets, report)


def _decode_into(
    folder: Path, job: DecodingJob, name: str, path: Path, sets: Mapping[str, TestSet], report: Report
) -> dict[str, list[Hypothesis]]:
    digest = model_digest(path)
    made_with = {key: job._made_with(digest, found.sha256) for key, found in sets.items()}
    files = {key: TranscriptsFile(folder, key, made_with[key], replace=job.overwrite) for key in sets}
    recogniser: Recogniser | None = None
    done: dict[str, list[Hypothesis]] = {}
    for key, found in sets.items():
        file = files[key]
        order = [item.id for item in found.utterances]
        skipped = dict(found.skipped)
        if job.strict:
            stop_at_any(key, skipped)
        if file.known.keys() >= set(order) and file.path.is_file():
            done[key] = [file.known[item] for item in order]
            report(f"{name}: {key} was decoded before{_left_out(skipped)}")
            continue
        if not file.known.keys() >= set(order):
            if recogniser is None:
                import torch

                torch.set_num_threads(job.threads)
                recogniser = open_recogniser(path, job._recogniser_settings, job.device)
                if job.cache is not None:
                    take_cache(recogniser, Path(job.cache), str(path))
            run = DecodingRun(job, recogniser, file, f"{name}: {key}", len(order))
            run.go(found.utterances)
            skipped |= run.skipped
        if not file.known:
            item, reason = next(iter(skipped.items()))
            raise AudioError(f"{job.sets[key]}: no utterance can be decoded; {item}: {reason}")
        record = {"model": str(path), "data": str(job.sets[key])}
        done[key] = file.finish(order, skipped, record)
        for item, reason in list(skipped.items())[:_NAMED]:
            report(f"{name}: {key}: {item}: {reason}")
        if len(skipped) > _NAMED:
            report(f"{name}: {key}: the others that were left out are in {file.note}")
        report(f"{name}: {key}, {len(done[key])} utterances{_left_out(skipped)}")
    report(f"{name}: decoded")
    return done


def _left_out(skipped: Mapping[str, str]) -> str:
    return f", {len(skipped)} left out" if skipped else ""
