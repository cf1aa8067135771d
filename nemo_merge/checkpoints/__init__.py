"""Reading and writing model checkpoints, one module per format."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError
from ._checkpoint import CARD, RECORD, Checkpoint, Metadata, TensorSpec, Writer, beside
from ._work import check_output
from .huggingface import HuggingFaceCheckpoint
from .memory import StateDictCheckpoint
from .nemo import NemoCheckpoint

__all__ = [
    "CARD",
    "RECORD",
    "Checkpoint",
    "HuggingFaceCheckpoint",
    "Metadata",
    "NemoCheckpoint",
    "StateDictCheckpoint",
    "TensorSpec",
    "Writer",
    "beside",
    "check_output",
    "open_checkpoint",
]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a checkpoint of any supported format without reading its tensors.

    Args:
        path: a ``.nemo`` file (plain or gzipped tar), or a Hugging Face folder with safetensors.

    Returns:
        A read-only mapping from names to lazily read tensors.

    Raises:
        CheckpointError: it does not exist, is damaged, unsafe, or of a format that is not supported.
    """
    path = Path(path)
    if path.is_dir():
        return HuggingFaceCheckpoint(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    return NemoCheckpoint(path)
