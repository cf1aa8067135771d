"""The Lightning callback beside :func:`~nemo_merge.adapters.still_batch_norm`."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning

from .batch_norm import StillHandle, still_batch_norm


class StillBatchNorm(lightning.Callback):
    """Keeps the statistics of frozen batch normalisation still during ``fit``.

    Starts when the trainer has prepared the model, so layers that ``sync_batchnorm`` replaced are kept still too.

    Args:
        part: dotted name of the part of the model to look at, for example ``"encoder"``; the whole model by default.
    """

    def __init__(self, part: str = "") -> None:
        self.part = part
        self._handle = StillHandle()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._handle.remove()
        self._handle = still_batch_norm(pl_module.get_submodule(self.part))

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self._handle.remove()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._handle.remove()
