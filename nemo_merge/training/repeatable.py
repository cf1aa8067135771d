"""Checkpoints of training: which are made, and from which one an interrupted run goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import CheckpointError, ConfigError
from .validation import monitored

if TYPE_CHECKING:
    from .fine_tune import FineTuningJob
    from .whisper_fine_tune import WhisperFineTuningJob

LAST = "last.ckpt"
STATE = "nemo_merge"
_OWN = ("output", "overwrite", "resume", "checkpoint_every", "keep_checkpoints", "devices", "num_nodes", "exp_manager")


class Resumable(Protocol):
    """A job that goes on from its checkpoints."""

    @property
    def seed(self) -> int: ...

    @property
    def resume(self) -> bool: ...

    @property
    def checkpoint_every(self) -> int | None: ...

    @property
    def checkpoints(self) -> Path:
        """Folder for them."""
        ...

    def fingerprint(self) -> str:
        """What tells its checkpoints from those of a job that would give other weights."""
        ...


def fingerprint(job: FineTuningJob | WhisperFineTuningJob) -> str:
    """What tells a job's checkpoints from those of a job that would give other weights."""
    from .recogniser import model_digest

    settings = {key: value for key, value in dataclasses.asdict(job).items() if key not in _OWN}
    settings["processes"] = job.devices * job.num_nodes
    settings["base"] = model_digest(Path(job.base))
    settings["train"] = [source.record() for source in job.sources()]
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def checkpoint_callbacks(job: FineTuningJob) -> list[Any]:
    """Lightning's callbacks for what the job asks to keep, and for stopping early."""
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

    callbacks: list[Any] = []
    monitor = monitored(job)
    if monitor is not None:
        if job.patience is not None:
            callbacks.append(
                EarlyStopping(monitor, patience=job.patience, mode="min", check_on_train_epoch_end=False, verbose=False)
            )
        name = f"{{step:06d}}-{{{monitor}:.5f}}"
        keep = max(1, job.keep_checkpoints)
        callbacks.append(ModelCheckpoint(job.checkpoints, name, monitor=monitor, mode="min", save_top_k=keep))
    if job.checkpoint_every is not None:
        callbacks.append(last_checkpoint(job))
    if not callbacks or (monitor is None and job.checkpoint_every is None):
        callbacks.append(ModelCheckpoint(job.checkpoints, save_top_k=0))  # or Lightning would save by its own rules
    return callbacks


def last_checkpoint(job: Resumable) -> Any:
    """Lightning's callback that keeps the checkpoint from which a run goes on."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    return ModelCheckpoint(
        job.checkpoints,
        LAST.removesuffix(".ckpt"),
        every_n_train_steps=job.checkpoint_every,
        enable_version_counter=False,
    )


def forget(job: Resumable) -> None:
    """Removes checkpoints of an earlier run, for one that begins anew."""
    for path in job.checkpoints.glob("*.ckpt"):
        path.unlink(missing_ok=True)


def resumable_checkpoint(job: Resumable) -> str | None:
    """The checkpoint from which an interrupted run of this job goes on, if there is one.

    Raises:
        ConfigError: it is of another job.
        CheckpointError: it cannot be read, or holds more than tensors and plain values.
    """
    last = job.checkpoints / LAST
    if not job.resume or not last.is_file():
        return None
    import torch

    try:
        content = torch.load(last, map_location="cpu", weights_only=True, mmap=True)
        mark = content["callbacks"][STATE]["fingerprint"]
    except Exception as error:  # torch.load raises what it meets
        raise CheckpointError(
            f"{last}: not a checkpoint of this program ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "remove it, or pass resume=false to start anew"
        ) from error
    if mark != job.fingerprint():
        raise ConfigError(
            f"{last}: is of a run with other settings; remove {job.checkpoints}, choose another output, or pass "
            "resume=false to start anew"
        )
    return str(last)
