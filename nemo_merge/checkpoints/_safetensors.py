"""What all formats that keep tensors in safetensors share: opening a file, types, and the layout for writing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError, OutputError
from ._checkpoint import TensorSpec
from ._pending import Layout, Slot

# Type names of the safetensors format.
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def open_safetensors(path: Path, missing: str = "no such file") -> Any:
    """Maps a file and reads its header.

    Args:
        path: the file.
        missing: what to say when it is not there.

    Raises:
        CheckpointError: missing, damaged, cut short, or with a header of more than 100 MB.
    """
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: {missing}") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or cut short ({error}); fetch it again") from error


def specs_of(handle: Any, path: Path) -> dict[str, TensorSpec]:
    """Shape and type of every tensor of an open file."""
    specs = {}
    for name in handle.keys():  # noqa: SIM118 (it is no dictionary)
        view = handle.get_slice(name)
        if (dtype := DTYPES.get(view.get_dtype())) is None:
            raise CheckpointError(f"{path}: tensor {name!r} has the type {view.get_dtype()}, which PyTorch cannot hold")
        specs[name] = TensorSpec(tuple(view.get_shape()), dtype)
    return specs


def lay_out(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> Layout:
    """The layout of a safetensors file: a length, a JSON header, then the tensors without gaps.

    Wide types come first, so that every tensor is aligned; names decide among equals, so that the bytes do not depend
    on the order of the dictionary.

    Raises:
        OutputError: the format has no name for a type.
    """
    order = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name in order:
        spec = specs[name]
        if spec.dtype not in _NAMES:
            raise OutputError(f"tensor {name!r} has the type {spec.dtype}, which safetensors cannot hold")
        header[name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [position, position + spec.nbytes],
        }
        position += spec.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    slots = {name: Slot(start + header[name]["data_offsets"][0], specs[name].nbytes) for name in order}
    return Layout(start + position, {0: len(text).to_bytes(8, "little") + text}, slots)
