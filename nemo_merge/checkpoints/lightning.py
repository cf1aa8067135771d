"""Checkpoints of PyTorch Lightning (``.ckpt``), of NeMo models among others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ._plain import plain
from ._torch_zip import TorchZip
from .torch_file import TorchFileCheckpoint

VERSION_KEY = "pytorch-lightning_version"
_HYPER_PARAMETERS = "hyper_parameters"
_EMA_SUFFIX = "-EMA.ckpt"


def is_lightning(content: Any) -> bool:
    """Whether the content of a torch file is a Lightning checkpoint."""
    return isinstance(content, Mapping) and "state_dict" in content and VERSION_KEY in content


class LightningCheckpoint(TorchFileCheckpoint):
    """A Lightning checkpoint; of what it holds only the state dict's tensors are ever read.

    A merged one keeps ``state_dict``, ``hyper_parameters`` and whatever else ``load_from_checkpoint`` needs, and leaves
    out optimizers, schedulers, callbacks and loops: it starts a new training, it does not resume one.

    With ``ema=True``, a file ``NAME-EMA.ckpt`` beside ``NAME.ckpt``, as NeMo's EMA callback writes it, is opened in its
    place.
    """

    format = "lightning"

    def __init__(self, path: str | Path, *, ema: bool = False, archive: TorchZip | None = None) -> None:
        path = Path(path)
        sibling = path.with_name(path.name.removesuffix(".ckpt") + _EMA_SUFFIX)
        if ema and path.name.endswith(_EMA_SUFFIX):  # its state dict holds the average
            ema = False
        elif ema and sibling.is_file():
            path, ema, archive = sibling, False, None
        super().__init__(path, ema=ema, archive=archive)
        if not is_lightning(self.content):
            raise CheckpointError(f"{path}: not a Lightning checkpoint (no {VERSION_KEY} inside)")

    def _config(self) -> Any:
        return config_of(self.content)


def config_of(content: Any) -> Any:
    """The model's configuration in what Lightning saves beside the tensors: ``hyper_parameters.cfg`` of NeMo models."""
    entries = plain(content.get(_HYPER_PARAMETERS)) if isinstance(content, Mapping) else None
    return entries.get("cfg", entries) if isinstance(entries, dict) else {}
