"""Reading and writing model checkpoints, one module per format."""

from __future__ import annotations

from ._adapted import AdaptedCheckpoint
from ._checkpoint import CARD, RECORD, Checkpoint, Metadata, TensorSpec, Writer, beside
from ._open import READABLE, open_checkpoint
from ._output import container_for, writer_for
from ._work import check_output
from .adapter import AdapterCheckpoint
from .dcp import DcpCheckpoint
from .huggingface import HuggingFaceCheckpoint
from .huggingface_bin import HuggingFaceBinCheckpoint
from .lightning import LightningCheckpoint
from .memory import StateDictCheckpoint
from .nemo import NemoCheckpoint
from .nemo_adapter import NemoAdapterCheckpoint
from .nemo_folder import NemoFolderCheckpoint
from .pack import PackCheckpoint
from .safetensors_file import SafetensorsCheckpoint
from .torch_file import TorchFileCheckpoint

__all__ = [
    "CARD",
    "READABLE",
    "RECORD",
    "AdaptedCheckpoint",
    "AdapterCheckpoint",
    "Checkpoint",
    "DcpCheckpoint",
    "HuggingFaceBinCheckpoint",
    "HuggingFaceCheckpoint",
    "LightningCheckpoint",
    "Metadata",
    "NemoAdapterCheckpoint",
    "NemoCheckpoint",
    "NemoFolderCheckpoint",
    "PackCheckpoint",
    "SafetensorsCheckpoint",
    "StateDictCheckpoint",
    "TensorSpec",
    "TorchFileCheckpoint",
    "Writer",
    "beside",
    "check_output",
    "container_for",
    "open_checkpoint",
    "writer_for",
]
