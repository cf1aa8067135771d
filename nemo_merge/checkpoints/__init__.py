"""Reading and writing model checkpoints, one module per format."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError, ConfigError
from ._adapted import AdaptedCheckpoint
from ._checkpoint import CARD, RECORD, Checkpoint, Metadata, TensorSpec, Writer, beside
from ._work import check_output
from .adapter import AdapterCheckpoint, is_adapter
from .huggingface import HuggingFaceCheckpoint
from .memory import StateDictCheckpoint
from .nemo import NemoCheckpoint
from .nemo_adapter import NemoAdapterCheckpoint

__all__ = [
    "CARD",
    "RECORD",
    "AdaptedCheckpoint",
    "AdapterCheckpoint",
    "Checkpoint",
    "HuggingFaceCheckpoint",
    "Metadata",
    "NemoAdapterCheckpoint",
    "NemoCheckpoint",
    "StateDictCheckpoint",
    "TensorSpec",
    "Writer",
    "beside",
    "check_output",
    "open_checkpoint",
]


def open_checkpoint(path: str | Path, prefix: str | None = None) -> Checkpoint:
    """Opens a checkpoint of any supported format without reading its tensors.

    Args:
        path: a ``.nemo`` file (plain or gzipped tar), a Hugging Face folder with safetensors, or an adapter, which a
            merge binds to its base: a folder of PEFT (or the file of tensors in it), or a ``.pt`` file of NeMo's
            ``save_adapters``.
        prefix: what stands before the names of a PEFT adapter in its base, where that is not clear without.

    Returns:
        A read-only mapping from names to lazily read tensors.

    Raises:
        CheckpointError: it does not exist, is damaged, unsafe, or of a format that is not supported.
    """
    path = Path(path)
    if is_adapter(path):
        return AdapterCheckpoint(path, prefix)
    if prefix is not None:
        raise ConfigError(f"{path}: prefix={prefix!r} is for PEFT adapters only")
    if path.suffix == ".pt" and path.is_file():
        return NemoAdapterCheckpoint(path)
    if path.is_dir():
        return HuggingFaceCheckpoint(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    return NemoCheckpoint(path)
