"""Snapshots of a training: which are kept, where, and how they are weighted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from ..checkpoints import Checkpoint, StateDictCheckpoint, open_checkpoint
from ..errors import ConfigError
from ._choice import Choice
from ._weights import snapshot, state_of, trained, write_snapshot

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule
    from lightning.pytorch.callbacks import ModelCheckpoint

Storage = Literal["disk", "memory"]


@dataclass
class Snapshot:
    """Weights at one step: a safetensors file, or tensors in CPU memory.

    Attributes:
        step: optimiser steps that were done.
        score: what validation gave, where the best are kept.
        file: name in the folder of snapshots.
        ties: further names of tied tensors.
        tensors: the weights, if they are kept in memory.
    """

    step: int
    score: float | None = None
    file: str | None = None
    ties: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] | None = None

    @classmethod
    def take(
        cls, module: LightningModule, step: int, folder: Path | None, score: float | None = None, name: str = "step"
    ) -> Snapshot:
        """Copies the weights that the model has now, into a folder or into memory."""
        if folder is None:
            copies: dict[int, Tensor] = {}  # tied tensors stay one tensor
            tensors = {
                key: copies.setdefault(value.data_ptr() or id(value), value.to("cpu", copy=True))
                for key, value in state_of(module).items()
            }
            return cls(step, score, tensors=tensors)
        file = f"{name}-{step}.safetensors"
        return cls(step, score, file, write_snapshot(module, folder / file))

    def opened(self, folder: Path) -> Checkpoint:
        """The weights as a checkpoint."""
        if self.tensors is not None:
            return StateDictCheckpoint(self.tensors, f"snapshot at step {self.step}")
        assert self.file is not None
        return snapshot(folder / self.file, self.ties)

    def remove(self, folder: Path) -> None:
        """Gives its place back."""
        if self.file is not None:
            (folder / self.file).unlink(missing_ok=True)


class Snapshots:
    """The last or the best few snapshots.

    Args:
        folder: where files are kept.
        count: how many are kept.
        best: the choice whose score decides, or None to keep the last.
        storage: ``disk`` or ``memory``.
    """

    def __init__(self, folder: Path, count: int, best: Choice | None, storage: Storage) -> None:
        self.folder, self.count, self.best, self.storage = folder, count, best, storage
        self.items: list[Snapshot] = []

    def add(self, module: LightningModule, step: int, score: float | None = None) -> None:
        """Takes a snapshot if it belongs to those that are kept, and drops the one that does no longer.

        They are in order: the newest, or the best, comes last.
        """
        if self.best is not None and len(self.items) == self.count:
            worst = self.items[0].score
            if score is None or math.isinf(score) or not self.best.improves(score, worst):
                return
        self.items = [item for item in self.items if item.step != step]
        self.items.append(Snapshot.take(module, step, self.folder if self.storage == "disk" else None, score))
        if self.best is not None:
            self.items.sort(key=lambda item: item.score or 0.0, reverse=self.best.mode == "min")
        for dropped in self.items[: -self.count]:
            dropped.remove(self.folder)
        self.items = self.items[-self.count :]

    def opened(self, module: LightningModule) -> list[Checkpoint]:
        """The snapshots as inputs of a merge."""
        return [
            trained(module, self.folder, f"snapshot at step {item.step}", item.opened(self.folder))
            for item in self.items
        ]

    def state(self) -> list[dict[str, Any]]:
        """What a checkpoint of the training notes; snapshots in memory are lost with the process."""
        return [
            {"step": item.step, "score": item.score, "file": item.file, "ties": dict(item.ties)}
            for item in self.items
            if item.file is not None
        ]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> list[int]:
        """Goes on with the snapshots of an interrupted training.

        Returns:
            The steps of those that are not there any more.
        """
        found = [Snapshot(**item) for item in state]
        self.items = [item for item in found if (self.folder / str(item.file)).is_file()]
        return [item.step for item in found if item not in self.items]

    def tidy(self, keep: Sequence[str] = ()) -> None:
        """Removes the files of another training."""
        known = {item.file for item in self.items} | set(keep)
        for path in self.folder.iterdir():
            if path.is_file() and path.name not in known:
                path.unlink()


def saved_by_trainer(callback: ModelCheckpoint, count: int, best: bool, ema: bool) -> list[tuple[str, Checkpoint]]:
    """The checkpoints that a ``ModelCheckpoint`` has saved, the newest or best last, by their paths.

    Args:
        callback: that of ``exp_manager``, or any other.
        count: how many are wanted.
        best: the best by its own metric; else the last by time.
        ema: take the moving average that NeMo's EMA callback saved with each.
    """
    scored = {path: float(score) for path, score in callback.best_k_models.items() if Path(path).is_file()}
    if best:
        chosen = sorted(scored, key=lambda path: scored[path], reverse=callback.mode == "min")
    else:
        saved = Path(callback.dirpath or ".").glob(f"*{callback.FILE_EXTENSION}")
        last = callback.CHECKPOINT_NAME_LAST.rpartition("}")[2] + callback.FILE_EXTENSION  # a copy of another one
        plain = [str(path) for path in saved if not path.name.endswith((last, f"-EMA{callback.FILE_EXTENSION}"))]
        chosen = sorted({*plain, *scored}, key=lambda path: Path(path).stat().st_mtime_ns)
    return [(path, open_checkpoint(path, ema=ema)) for path in chosen[-count:]]


def spread(weights: str | Sequence[float], count: int, kept: int) -> tuple[float, ...] | None:
    """Weights of the snapshots, the newest or best last.

    Args:
        weights: ``uniform``; ``linear``, by rank and with a mean of 1; or one number for each that was asked for.
        count: how many there are.
        kept: how many were asked for.

    Raises:
        ConfigError: another number of weights.
    """
    if weights == "uniform":
        return None
    if weights == "linear":
        return tuple(2 * (rank + 1) / (count + 1) for rank in range(count))
    if isinstance(weights, str) or not isinstance(weights, Sequence) or len(weights) != kept:
        raise ConfigError(f"weights={weights!r} is neither uniform nor linear nor a list of {kept} numbers")
    return tuple(map(float, weights[kept - count :]))
