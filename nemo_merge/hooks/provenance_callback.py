"""Keeps what a model says of its merge true while it is trained."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from nemo.lightning.base_callback import BaseCallback
from nemo.lightning.callback_group import CallbackGroup

from .provenance import note_training


class ProvenanceCallback(BaseCallback):
    """Notes in the configuration of a model that comes from a merge that it has been trained since, and how far.

    Saved models (``.nemo``) and checkpoints then tell which merge they were fine-tuned from; see
    :mod:`nemo_merge.hooks.provenance` for the form. Models that do not come from a merge are left alone.

    :func:`nemo_merge.register` puts one into NeMo's ``CallbackGroup``, which adds it to every trainer.
    """

    def __init__(self) -> None:
        self._from_step: int | None = None  # where this training began, while there is one

    def update_config(self, *args: Any, trainer: Any = None, **kwargs: Any) -> None:
        """Takes the place of others of its kind: NeMo adds the callbacks of its group at every ``fit`` again."""
        if trainer is not None:
            trainer.callbacks = [item for item in trainer.callbacks if not isinstance(item, ProvenanceCallback)]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._from_step = trainer.global_step
        self._note(trainer, pl_module, new=True)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._note(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Also for ``.nemo`` files, which NeMo writes in this hook."""
        if self._from_step is None:
            return
        self._note(trainer, pl_module)
        saved = checkpoint.get(pl_module.CHECKPOINT_HYPER_PARAMS_KEY)
        if saved:  # Lightning has put them there before it asks callbacks
            saved.update(pl_module.hparams)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._note(trainer, pl_module)
        self._from_step = None

    def _note(self, trainer: Any, model: Any, *, new: bool = False) -> None:
        assert self._from_step is not None
        note_training(
            model,
            from_step=self._from_step,
            to_step=trainer.global_step,
            more={"nemo": version("nemo_toolkit")},
            new=new,
        )


def install() -> Callable[[], None]:
    """Registers the callback with NeMo; the result takes it out again."""
    callback, group = ProvenanceCallback(), CallbackGroup.get_instance()
    group.register(callback)

    def undo() -> None:
        if callback in group.callbacks:
            group.callbacks.remove(callback)

    return undo
