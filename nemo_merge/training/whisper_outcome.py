"""What a fine-tuning of Whisper leaves: a folder like the base's, or an adapter, with a record of its origin."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import RECORD
from ..checkpoints._yaml import dump
from ..checkpoints.huggingface import side_files
from .jobs import Report
from .outcome import Outcome, appearing, record

if TYPE_CHECKING:
    from .whisper_fine_tune import WhisperFineTuningJob
    from .whisper_model import WhisperParts

_PACKAGES = ("torch", "transformers", "accelerate", "lhotse", "peft")
_MADE_ANEW = ("config.json", RECORD)


def finish(job: WhisperFineTuningJob, parts: WhisperParts, trainer: Any, report: Report, *, write: bool) -> Outcome:
    """Writes the output and removes checkpoints of training; the trainer has taken the best weights already.

    Args:
        job: what was done.
        parts: the trained model and what belongs to it.
        trainer: what trained it.
        report: called with a line about the result.
        write: whether this is the process that writes.
    """
    output, steps = Path(job.output), int(trainer.state.global_step)
    value = None if job.select is None or trainer.state.best_metric is None else float(trainer.state.best_metric)
    made = record(job, steps, value, _PACKAGES)
    parts.model.cpu().eval()
    if write:
        with appearing(output) as folder:
            _write(job, parts, folder)
            (folder / RECORD).write_text(dump(made), encoding="utf-8")
        shutil.rmtree(job.checkpoints, ignore_errors=True)
        chosen = "" if value is None else f", {job.select} {value:.4f}"
        report(f"{steps} steps{chosen}; written to {output}")
    return Outcome(output, steps, value, made)


def _write(job: WhisperFineTuningJob, parts: WhisperParts, folder: Path) -> None:
    from .. import adapters

    if job.trains_adapter and not job.merge_adapter:
        adapters.save_adapter(parts.model, folder)
        return
    import torch

    if job.trains_adapter:
        adapters.merge_adapter(parts.model)
    parts.restore_config()
    parts.model.to(getattr(torch, job.store)).save_pretrained(folder)
    for file in side_files(parts.path):  # as they are: models merge only if their tokenizers are the same
        if file.name not in _MADE_ANEW:
            shutil.copyfile(file, folder / file.name)
