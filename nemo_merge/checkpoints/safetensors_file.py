"""A single safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import OutputError
from ._checkpoint import Checkpoint, Metadata, TensorSpec, Writer, check_outputs
from ._safetensors import lay_out, open_safetensors, specs_of
from ._single_file import SingleFileWriter

PROVENANCE_KEY = "nemo_merge"
SUFFIX = ".safetensors"


class SafetensorsCheckpoint(Checkpoint):
    """A safetensors file; tensors are mapped, so that opening it reads only the header.

    The format cannot say that two names share a tensor. As ``safetensors.torch.save_model`` does, the second name is
    noted in the header's metadata with the first as its value; such names are found here as tied tensors.

    Attributes:
        file_metadata: the header's metadata.

    Raises:
        CheckpointError: damaged, cut short, or of a type that PyTorch cannot hold.
    """

    format = "safetensors"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._handle = open_safetensors(self.path)
        self.file_metadata: dict[str, str] = self._handle.metadata() or {}
        own = specs_of(self._handle, self.path)
        self.ties = {alias: owner for alias, owner in self.file_metadata.items() if owner in own and alias not in own}
        self.specs = {**own, **{alias: own[owner] for alias, owner in self.ties.items()}}
        self.metadata = Metadata("safetensors", provenance=self._read_provenance())

    def __getitem__(self, name: str) -> Tensor:
        return self._handle.get_tensor(self.ties.get(name, name))

    def close(self) -> None:
        self._handle = None

    def writer(
        self, output: Path, specs: Mapping[str, TensorSpec], record: Mapping[str, Any], *, overwrite: bool = False
    ) -> Writer:
        return safetensors_writer(output, specs, self.ties, record, self.file_metadata, overwrite=overwrite)

    def _read_provenance(self) -> dict[str, Any] | None:
        try:
            record = json.loads(self.file_metadata.get(PROVENANCE_KEY, "null"))
        except (ValueError, RecursionError):
            return None
        return record if isinstance(record, dict) else None


def safetensors_writer(
    output: Path,
    specs: Mapping[str, TensorSpec],
    ties: Mapping[str, str],
    record: Mapping[str, Any],
    metadata: Mapping[str, str],
    *,
    overwrite: bool,
) -> Writer:
    """A writer of one safetensors file; the merge's record becomes ``nemo_merge`` in the header's metadata, as JSON.

    Args:
        output: the file.
        specs: shape and type of every tensor.
        ties: further names of tensors, which are noted in the metadata.
        record: provenance of the tensors.
        metadata: what the header says besides.
        overwrite: allow an output that exists to be replaced.
    """
    check_outputs(output, overwrite)
    text = json.dumps(record, ensure_ascii=False, sort_keys=True, default=str)
    aliases = {alias: owner for alias, owner in ties.items() if owner in specs}
    if clash := aliases.keys() & {PROVENANCE_KEY, "format"}:
        raise OutputError(f"{output}: a tensor is named {min(clash)!r}, which is a word of the safetensors header")
    about = {"format": "pt", **metadata, **aliases, PROVENANCE_KEY: text}
    return SingleFileWriter(output, lay_out(specs, about), record, overwrite=overwrite)
