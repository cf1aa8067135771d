"""Merges snapshots of one training: the last ones or the best ones."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import Checkpoint
from ..errors import ConfigError, PlanError
from ..merging.inputs import Source
from ..merging.plan import BatchNorm, PlanOptions, Rules, Then
from ..merging.recalibration import Audio
from ..methods import Method
from ._choice import Choice, Keep, Metrics, Mode, Rule
from ._merging import Inputs, MergingCallback
from ._settings import method_of, natural
from ._snapshots import Snapshot, Snapshots, Storage, saved_by_trainer, spread
from ._validation import averaged_weights, averages, ranks_of
from ._weights import trained

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

logger = logging.getLogger("nemo_merge")

_START = "start.safetensors"


class CheckpointMergeCallback(MergingCallback):
    """Merges snapshots of this training, the last or the best, into one model when it ends.

    It does what NeMo's retired scripts for checkpoint averaging did, by any method: with one that works on task vectors
    the starting weights of the run are the base.

    Example:
        >>> callback = CheckpointMergeCallback("average.nemo", best=5)

    Args:
        output: the ``.nemo`` to write; it appears whole, and stock NeMo restores it.
        method: name of a merging method, a mapping with ``name`` and parameters, or a method.
        last: merge the last so many snapshots; 5 where ``best`` is not given either.
        best: merge the best so many by ``monitor``.
        every_n_steps: take snapshots after so many optimiser steps; by default after every validation.
        from_checkpoints: take no snapshots, but merge what the trainer's ``ModelCheckpoint`` (``exp_manager``) has
            saved when training ends; ``best`` then goes by its metric.
        storage: ``disk`` keeps snapshots in a hidden folder beside the output, where an interrupted training finds them
            again; ``memory`` on the CPU of rank 0.
        base: the base of task vectors; by default the weights that the run starts with.
        weights: ``uniform``, ``linear`` (by rank, the newest or best counts most), or one number per snapshot, that of
            the newest or best last.
        overwrite: replace an output that exists.
        keep: ``merged``, ``better`` (the merged model or the last weights) or ``both``, as of
            :class:`~nemo_merge.hooks.MergeCallback`.
        monitor: as there; merged and last weights are validated and logged unless it is None.
        mode: as there.
        min_delta: as there.
        limits: as there.
        rules: as of :func:`nemo_merge.merge`.
        then: as of :func:`nemo_merge.merge`.
        batch_norm: as of :func:`nemo_merge.merge`; running statistics are averaged by default.
        audio: as of :func:`nemo_merge.merge`.
        dtype: as of :func:`nemo_merge.merge`.
        device: as of :func:`nemo_merge.merge`.
        workers: as of :func:`nemo_merge.merge`.
        **parameters: parameters of the method.

    Raises:
        ConfigError: a setting, method or parameter that does not exist, or a value out of range.
    """

    trained_as = "last"

    def __init__(
        self,
        output: str | Path,
        method: str | Method | Mapping[str, Any] = "soup",
        *,
        last: int | None = None,
        best: int | None = None,
        every_n_steps: int | None = None,
        from_checkpoints: bool = False,
        storage: Storage = "disk",
        base: Source | None = None,
        weights: str | Sequence[float] = "uniform",
        overwrite: bool = False,
        keep: Keep | Rule = "merged",
        monitor: str | Mapping[str, float] | None = "val_wer",
        mode: Mode = "min",
        min_delta: float = 0.0,
        limits: Metrics | None = None,
        rules: Rules = (),
        then: Then = (),
        batch_norm: BatchNorm = "average",
        audio: Audio | None = None,
        dtype: str | None = None,
        device: str = "cpu",
        workers: int | None = None,
        **parameters: Any,
    ) -> None:
        settings = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        if last is not None and best is not None:
            raise ConfigError("give last= or best=, not both")
        if storage not in ("disk", "memory"):
            raise ConfigError(f"storage={storage!r} does not exist; known: disk, memory")
        self.every = natural(every_n_steps, "every_n_steps")
        if self.every is not None and (best is not None or from_checkpoints):
            raise ConfigError("every_n_steps takes snapshots without validation; it goes with last= only")
        if best is not None and monitor is None and not from_checkpoints:
            raise ConfigError("best= needs a metric; name it with monitor=")
        self.count = natural(best, "best") or natural(last, "last") or 5
        self.best, self.from_checkpoints, self.base, self.weights = best is not None, from_checkpoints, base, weights
        chosen = method_of(method, parameters, [key for key in settings if key != "parameters"])
        dataclasses.replace(chosen, weights=spread(weights, self.count, self.count)).resolved_weights(self.count)
        _check_count(chosen, self.count)
        self.from_start = base is None and (
            chosen.requires_base(self.count) or bool(rules) or batch_norm == "base" or bool(then)
        )
        choice = Choice(keep, monitor, mode, min_delta, limits or {})
        super().__init__(
            chosen,
            output,
            overwrite,
            choice,
            PlanOptions(rules, then, batch_norm, audio, dtype, device, workers),
            settings,
        )
        self.snapshots = Snapshots(self.folder, self.count, choice if self.best else None, storage)
        self._start: Snapshot | None = None
        self._resumed: dict[str, Any] | None = None
        self._step_seen = 0
        self._saver: Any = None
        self._averages = False
        self._merged = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if self.from_checkpoints:
            self._check_trainer(trainer)
        ranks = ranks_of(trainer)
        with ranks.together():  # before a checkpoint is loaded to go on with: the run starts with these weights
            if ranks.first and self.from_start:
                self.folder.mkdir(exist_ok=True)
                on_disk = self.snapshots.storage == "disk"
                self._start = Snapshot.take(pl_module, 0, self.folder if on_disk else None, name="starting")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._step_seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self.every is not None and step > self._step_seen and step % self.every == 0:
            self._take(trainer, pl_module)
        self._step_seen = step

    def after_validation(self, trainer: Trainer, module: LightningModule, metrics: Metrics) -> None:
        if self.every is None and not self.from_checkpoints:
            self._take(trainer, module, self.choice.score(metrics) if self.best else None)

    def needed_now(self, trainer: Trainer) -> bool:
        return True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.from_checkpoints:
            self._saver, self._averages = trainer.checkpoint_callback, bool(averages(trainer))
        super().on_train_end(trainer, pl_module)

    def inputs(self, module: LightningModule, label: str) -> Inputs:
        experts: list[Source] = list(self._saved(module) if self._saver else self.snapshots.opened(module))
        if not experts:
            where = "the trainer has saved no checkpoint" if self.from_checkpoints else "no snapshot was taken"
            raise PlanError([f"{where} before the training ended; make the interval shorter"])
        if len(experts) < self.count:
            logger.warning("only %d of the %d checkpoints to merge were there", len(experts), self.count)
        self._merged = len(experts)
        return self._base(module), experts

    def method_now(self) -> Method:
        return dataclasses.replace(self.method, weights=spread(self.weights, self._merged, self.count))

    def sample_inputs(self, module: LightningModule) -> Inputs:
        return self._base(module), [trained(module, self.folder, "model in training")] * self.count

    def state_dict(self) -> dict[str, Any]:
        start = self._start
        known = None if start is None or start.file is None else {"file": start.file, "ties": dict(start.ties)}
        return {**super().state_dict(), "snapshots": self.snapshots.state(), "start": known}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._resumed = state_dict

    def _take(self, trainer: Trainer, module: LightningModule, score: float | None = None) -> None:
        ranks = ranks_of(trainer)
        with self.tolerated(trainer), averaged_weights(trainer, self), ranks.together():
            if ranks.first:
                self.snapshots.add(module, trainer.global_step, score)

    def _base(self, module: LightningModule) -> Source | None:
        if self._start is None:
            return self.base
        return trained(module, self.folder, "weights at the start of the run", self._start.opened(self.folder))

    def _prepare_folder(self) -> None:
        """Keeps what an interrupted training left that goes on now, and nothing else."""
        self.folder.mkdir(exist_ok=True)
        if self._resumed is not None:
            lost = self.snapshots.restore(self._resumed["snapshots"])
            if lost:
                logger.warning("%s: the snapshots of steps %s are not there any more", self.folder, lost)
            elif self.snapshots.storage == "memory":
                logger.warning("snapshots in memory do not outlive a process: those before the interruption are lost")
            self._resume_start(self._resumed["start"])
        if self._start is not None and self._start.file is not None:
            os.replace(self.folder / self._start.file, self.folder / _START)
            self._start.file = _START
        self.snapshots.tidy([_START])

    def _clean_up(self) -> None:
        """Keeps the snapshots of an interrupted training, and of a merge that failed."""
        if self.snapshots.storage == "disk" and not self.outcomes and (self.snapshots.items or self._resumed):
            logger.warning("%s: the snapshots of this training are kept here", self.folder)
        else:
            super()._clean_up()

    def _resume_start(self, known: Mapping[str, Any] | None) -> None:
        if self._start is None:
            return
        if known is not None and (self.folder / known["file"]).is_file():
            self._start = Snapshot(0, None, known["file"], known["ties"])
        else:
            logger.warning(
                "the weights that the interrupted run started with are not there any more; those that the model has "
                "before its checkpoint is loaded are the base instead"
            )

    def _check_trainer(self, trainer: Trainer) -> None:
        saver: Any = trainer.checkpoint_callback
        if saver is None:
            raise ConfigError("from_checkpoints=true, but the trainer saves none; add exp_manager or a ModelCheckpoint")
        if self.best and saver.monitor is None:
            raise ConfigError(
                "from_checkpoints=true with best=: the trainer's ModelCheckpoint has no monitor; use last="
            )
        if 0 <= saver.save_top_k < self.count:  # -1 keeps all
            raise ConfigError(
                f"from_checkpoints=true: the trainer keeps {saver.save_top_k} checkpoints, but {self.count} are to be "
                f"merged; set its save_top_k to {self.count} (exp_manager.checkpoint_callback_params.save_top_k)"
            )

    def _saved(self, module: LightningModule) -> list[Checkpoint]:
        saved = saved_by_trainer(self._saver, self.count, self.best, self._averages)
        return [trained(module, self.folder, path, held) for path, held in saved]


def _check_count(method: Method, count: int) -> None:
    most = method.maximum_experts
    if count < method.minimum_experts or (most is not None and count > most):
        raise ConfigError(
            f"{method.name} cannot merge {count} snapshots; it takes {method.minimum_experts} to {most or 'any number'}"
        )
