"""Validates other weights in the middle of training, without training noticing."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.trainer.connectors.logger_connector import _LoggerConnector

from ..errors import ConfigError
from ..merging.ranks import Ranks

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer

REMEDY = "give the model validation data (validation_ds), or monitor=None with keep=merged to validate nothing"


def ranks_of(trainer: Trainer) -> Ranks:
    """The processes of a training."""
    return Ranks(trainer.global_rank, trainer.world_size)


def check_validation_data(trainer: Trainer) -> None:
    """Refuses a trainer that validates nothing; call it when training has started.

    Raises:
        ConfigError: with the remedy.
    """
    loop = _loop_of(trainer)
    if trainer.enable_validation:
        loop.setup_data()
    if not trainer.enable_validation or not sum(loop.max_batches):
        raise ConfigError(f"there are no validation data to compare the merged model on; {REMEDY}")


def logged_since(trainer: Trainer, before: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that validation has logged since ``before``, a copy of the trainer's metrics, was made."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if before.get(name) is not value}


def validate(trainer: Trainer, ranks: Ranks) -> dict[str, float]:
    """Runs the trainer's validation loop over its own data loaders with the weights that the model has now.

    All hooks of the model run, those of callbacks do not, and nothing is logged. Metrics, progress and mode of the
    model are afterwards what they were; data loaders draw random numbers, so the caller isolates them. All ranks call
    this; a metric that the model does not reduce over ranks itself is averaged, so that all get the same values.

    Returns:
        The logged metrics by name, those of further data loaders with the model's prefixes.
    """
    fit = trainer.fit_loop.epoch_loop
    outer = _loop_of(trainer)
    outer.setup_data()
    loop = copy.copy(outer)
    loop._combined_loader = copy.copy(outer._combined_loader)  # the same data, iterated by itself
    fresh = _EvaluationLoop(trainer, loop._trainer_fn, loop._stage, verbose=False, inference_mode=False)
    for name in ("_results", "batch_progress", "_logged_outputs", "_module_mode", "_data_fetcher"):
        setattr(loop, name, getattr(fresh, name))
    loop.verbose, loop._seen_batches_per_dataloader = False, defaultdict(int)
    connector = _LoggerConnector(trainer)
    replaced = {"callbacks": [], "_loggers": [], "_logger_connector": connector}
    before = {name: getattr(trainer, name) for name in replaced}
    stage = trainer.state.stage
    try:
        fit.val_loop = loop
        for name, value in replaced.items():
            setattr(trainer, name, value)
        trainer.validating = True
        loop.run()
        own = {name: float(value) for name, value in connector._callback_metrics.items()}
    finally:
        trainer.state.stage = stage
        for name, value in before.items():
            setattr(trainer, name, value)
        fit.val_loop = outer
        if loop._data_fetcher is not None:
            loop._data_fetcher.teardown()
    everybody = ranks.all(own)
    return {name: sum(metrics[name] for metrics in everybody) / len(everybody) for name in own}


def _loop_of(trainer: Trainer) -> Any:
    return trainer.fit_loop.epoch_loop.val_loop


@contextmanager
def averaged_weights(trainer: Any, callback: Callback) -> Iterator[None]:
    """Puts the moving average of NeMo's EMA callback into the model, if validation uses it.

    During ``on_validation_end`` of a callback that stands before EMA's, it is there already.
    """
    own = trainer.callbacks.index(callback)
    used = [other for number, other in averages(trainer) if not (trainer.validating and number > own)]
    for other in used:
        other.swap_model_weights(trainer)
    try:
        yield
    finally:
        for other in used:
            other.swap_model_weights(trainer)


def averages(trainer: Any) -> list[tuple[int, Any]]:
    """NeMo's EMA callbacks whose averages are validated, with their places among the callbacks."""
    return [
        (number, callback)
        for number, callback in enumerate(trainer.callbacks)
        if hasattr(callback, "swap_model_weights") and callback._should_validate_ema_weights(trainer)
    ]
