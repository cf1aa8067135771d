"""Draws the weights back toward a base while they are fine-tuned."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from lightning.pytorch import Callback
from torch import Tensor

from ..checkpoints import Checkpoint, StateDictCheckpoint
from ..errors import ConfigError, did_you_mean
from ..merging.inputs import Source, open_source, renamed
from ..tensors import NEVER_MERGED, Role, role_of
from ._base import check_base
from ._settings import check_same_on_all_ranks, check_whole_model, natural
from ._validation import ranks_of
from ._weights import digest_of, state_of

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

logger = logging.getLogger("nemo_merge")

Schedule = Literal["constant", "linear", "cosine"]
Statistics = Literal["average", "base", "keep"]
_STATISTICS = (Role.BATCH_NORM_MEAN, Role.BATCH_NORM_VARIANCE)
SPEECH_FT = 0.25
"""What is left of the fine-tuned change by default when it is merged once, at the end (Lin et al., 2025)."""


class ContinualMergeCallback(Callback):
    """Sets ``W <- base + c (W - base)`` while a model is fine-tuned, or once at the end.

    At the end only, with c = 0.25, this is the interpolation of Speech-FT (Lin et al., 2025, arXiv 2502.12672), meant
    to keep what fine-tuning would make a model forget. Applied every few steps it pulls the weights back all the time,
    as a decay toward the base does, and c may follow a schedule.

    Weights are changed in place, the same way on all ranks; the optimiser keeps its moments. Validation and checkpoints
    after a step see the changed weights, and what NeMo saves at the end has them.

    Example:
        >>> callback = ContinualMergeCallback("base.nemo", every_n_steps=100, schedule="cosine", end=0.5)

    Args:
        base: a checkpoint with the same tensors; by default the weights that the run starts with.
        every_n_steps: how often, in optimiser steps; by default at the end only.
        at_end: also when training ends; by default only where ``every_n_steps`` is not given.
        alpha: c, between 0 (the base) and 1 (nothing happens), for a constant schedule; 0.25 at the end only.
        schedule: ``constant``, or ``linear`` or ``cosine`` from ``start`` to ``end``.
        start: c at the first step.
        end: c at the last step.
        steps: length of the schedule in optimiser steps; by default that of the training.
        include: regular expressions, searched for in tensor names; by default all tensors.
        exclude: regular expressions of tensors to leave alone, such as a new output layer.
        batch_norm: running statistics are interpolated too (``average``), set to the base's (``base``), or left alone
            (``keep``).

    Raises:
        ConfigError: a value out of range, or settings that exclude each other.
    """

    def __init__(
        self,
        base: Source | None = None,
        *,
        every_n_steps: int | None = None,
        at_end: bool | None = None,
        alpha: float | None = None,
        schedule: Schedule = "constant",
        start: float | None = None,
        end: float | None = None,
        steps: int | None = None,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] = (),
        batch_norm: Statistics = "average",
    ) -> None:
        self.settings = {key: value for key, value in locals().items() if key != "self"}
        for name, value, known in (("schedule", schedule, Schedule), ("batch_norm", batch_norm, Statistics)):
            if value not in get_args(known):
                raise ConfigError(f"{name}={value!r} does not exist{did_you_mean(str(value), get_args(known))}")
        self.base, self.schedule, self.batch_norm = base, schedule, batch_norm
        self.every, self.steps = natural(every_n_steps, "every_n_steps"), natural(steps, "steps")
        self.at_end = self.every is None if at_end is None else at_end
        if self.every is None and not self.at_end:
            raise ConfigError("at_end=false and no every_n_steps: nothing would ever be merged")
        self.start, self.end = _coefficients(schedule, alpha, start, end, self.every)
        self.include = _patterns(include, "include") if include is not None else None
        self.exclude = _patterns(exclude, "exclude")
        self._files = ExitStack()
        self._origin: Mapping[str, Tensor] = {}
        self._digest: str | None = None
        self._chosen: dict[str, Tensor] = {}
        self._step_seen = 0

    @property
    def state_key(self) -> str:
        """Tells several such callbacks of one trainer apart in its checkpoints."""
        return self._generate_state_key(base=self._shown, every_n_steps=self.every, include=str(self.include))

    def coefficient(self, step: int) -> float:
        """C at a step, by the schedule."""
        if self.schedule == "constant" or not self.steps:
            return self.end
        progress = min(1.0, step / self.steps)
        if self.schedule == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.end - self.start) * progress

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        ranks = ranks_of(trainer)
        check_same_on_all_ranks(type(self).__name__, self.settings, ranks)
        check_whole_model(trainer, type(self).__name__)
        self._files.close()
        own = state_of(pl_module)
        with ranks.together():
            if self.base is None:
                self._origin = {name: value.to("cpu", copy=True) for name, value in own.items()}
                self._digest = digest_of(self._origin)
            else:
                opened = open_source(self.base, self._files)
                self._origin = renamed(opened, StateDictCheckpoint(own))
                self._digest = repr(sorted(opened.sha256().items())) if opened.files else digest_of(opened)
            names = self._select(own)
            if isinstance(self._origin, Checkpoint):
                check_base(pl_module, self._origin, names)
        if len(set(ranks.all(self._digest))) > 1:
            raise ConfigError(f"{type(self).__name__}: the ranks have different weights or files as the base")
        self._chosen = {name: own[name] for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.base is None and state_dict["base"] != self._digest:
            raise ConfigError(
                f"{type(self).__name__}: the interrupted run started from other weights than the model has now; "
                "give the checkpoint that it started from as base="
            )

    def state_dict(self) -> dict[str, Any]:
        return {"base": self._digest if self.base is None else None}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step_seen = trainer.global_step
        own = {id(parameter) for parameter in pl_module.parameters()}
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        if any(id(parameter) not in own for group in groups for parameter in group["params"]):
            raise ConfigError(
                f"{type(self).__name__}: the optimiser keeps copies of the weights and would undo the merge; use one "
                "that works on the model's own parameters"
            )
        if self.schedule != "constant" and self.steps is None:
            total = trainer.estimated_stepping_batches
            if not math.isfinite(total) or total < 1:
                raise ConfigError(
                    f"schedule={self.schedule} needs the length of the training, which has no end; "
                    "set max_steps of the trainer, or steps="
                )
            self.steps = int(total)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self.every is not None and step > self._step_seen and step % self.every == 0:
            self._merge(trainer)
        self._step_seen = step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.at_end and not (self.every is not None and trainer.global_step % self.every == 0):
            self._merge(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._files.close()
            self._chosen = {}

    @torch.no_grad()
    def _merge(self, trainer: Trainer) -> None:
        c = self.coefficient(trainer.global_step)
        for name, value in self._chosen.items():
            statistics = role_of(name, tuple(value.shape), value.dtype) in _STATISTICS
            factor = 0.0 if statistics and self.batch_norm == "base" else c
            exact = torch.promote_types(value.dtype, torch.float32)
            origin = self._origin[name].to(value.device, exact)
            value.copy_(torch.lerp(origin, value.to(exact), factor))
        for own in trainer.loggers:
            own.log_metrics({"continual_merge/coefficient": c}, step=trainer.global_step)

    def _select(self, own: Mapping[str, Tensor]) -> list[str]:
        """Names of the tensors that are merged; says how many are not, and why.

        Raises:
            ConfigError: a pattern matches nothing, or nothing is left.
        """
        for what, patterns in (("include", self.include or []), ("exclude", self.exclude)):
            for pattern in patterns:
                if not any(pattern.search(name) for name in own):
                    raise ConfigError(f"{what}: {pattern.pattern!r} matches no tensor of the model")
        ties = StateDictCheckpoint(own).ties
        chosen: list[str] = []
        left: Counter[str] = Counter()
        for name, value in own.items():
            role = role_of(name, tuple(value.shape), value.dtype)
            if self.include is not None and not any(pattern.search(name) for pattern in self.include):
                left["not included"] += 1
            elif any(pattern.search(name) for pattern in self.exclude):
                left["excluded"] += 1
            elif role in _STATISTICS and self.batch_norm == "keep":
                left["batch_norm=keep"] += 1
            elif role in NEVER_MERGED and role not in _STATISTICS:
                left["counters and constants of the feature extractor"] += 1
            elif name not in ties:
                chosen.append(name)
        if not chosen:
            raise ConfigError("include and exclude leave no tensor to merge")
        rest = "".join(f"; {count} left alone: {reason}" for reason, count in left.items())
        logger.info("%s: %d tensors are drawn toward %s%s", type(self).__name__, len(chosen), self._shown, rest)
        return chosen

    @property
    def _shown(self) -> str:
        return (
            "the weights at the start of the run" if self.base is None else str(getattr(self.base, "path", self.base))
        )


def _coefficients(
    schedule: str, alpha: float | None, start: float | None, end: float | None, every: int | None
) -> tuple[float, float]:
    """First and last coefficient."""
    if schedule == "constant":
        if start is not None or end is not None:
            raise ConfigError("schedule=constant takes alpha=, not start= or end=")
        if alpha is None and every is not None:
            raise ConfigError("every_n_steps needs alpha=, what is left of the change each time, for example 0.99")
        alpha = SPEECH_FT if alpha is None else alpha
        start = end = alpha
    elif alpha is not None or end is None:
        raise ConfigError(f"schedule={schedule} goes from start= (1 by default) to end=, which is needed; not alpha=")
    start = 1.0 if start is None else start
    for name, value in (("alpha" if schedule == "constant" else "start", start), ("end", end)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ConfigError(f"{name}={value!r} is not between 0 (the base) and 1 (the trained weights)")
    assert end is not None
    return float(start), float(end)


def _patterns(values: str | Sequence[str], what: str) -> list[re.Pattern[str]]:
    try:
        return [re.compile(value) for value in ([values] if isinstance(values, str) else values)]
    except (re.error, TypeError) as error:
        raise ConfigError(f"{what}={values!r}: not a list of regular expressions ({error})") from error
