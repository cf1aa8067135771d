"""Hugging Face model folders with ``pytorch_model.bin``, as older ones are; merged ones get safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import Tensor

from ..errors import CheckpointError
from ._checkpoint import TensorSpec
from ._stored import plain_state_dict, ties_of
from ._torch_zip import StoredTensor, TorchZip
from .huggingface import HuggingFaceCheckpoint

BIN_SINGLE, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


class HuggingFaceBinCheckpoint(HuggingFaceCheckpoint):
    """A folder with ``pytorch_model.bin``, in one file or in shards; tensors are mapped.

    What is merged from it is written as safetensors: ``pytorch_model-00001-of-00002.bin`` becomes
    ``model-00001-of-00002.safetensors``, and tied names are left out, as ``save_pretrained`` does.
    """

    single: ClassVar[str] = BIN_SINGLE
    index: ClassVar[str] = BIN_INDEX

    def __init__(self, path: str | Path) -> None:
        self._zips: dict[str, TorchZip] = {}
        self._stored: dict[str, StoredTensor] = {}
        ties: dict[str, str] = {}
        self._found_ties = ties
        super().__init__(path)
        self.ties = ties

    def __getitem__(self, name: str) -> Tensor:
        return self._zips[self._homes[name]].read(self._stored[name])

    def close(self) -> None:
        self._zips.clear()

    def home(self, name: str) -> str:
        return f"model{self._homes[name].removeprefix('pytorch_model').removesuffix('.bin')}.safetensors"

    def _open(self, shard: str) -> dict[str, TensorSpec]:
        path = self.path / shard
        if not path.is_file():
            raise CheckpointError(f"{path}: missing, although {self.index} lists it; fetch it again")
        self._zips[shard] = TorchZip(path)
        stored = plain_state_dict(self._zips[shard].content, str(path))
        self._zips[shard].check_all(stored)
        self._stored.update(stored)
        self._found_ties.update(ties_of(stored))
        return {name: tensor.spec for name, tensor in stored.items()}
