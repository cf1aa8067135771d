"""Distributed checkpoints of PyTorch (``torch.distributed.checkpoint``), as FSDP and model-parallel trainings write.

A folder holds ``.metadata``, a pickle that says which piece of which tensor is where, and ``*.distcp`` files, in which
each piece is a small file of ``torch.save``. PyTorch loads ``.metadata`` by ``pickle.load``, which runs whatever it
says; here it is read as placeholders.
"""

from __future__ import annotations

import contextlib
import math
import pickle
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from ._checkpoint import Checkpoint, Metadata, TensorSpec
from ._pickle import MAX_PICKLE, Inert, SafeUnpickler
from ._stored import WRAPPERS
from ._torch_zip import KNOWN, StoredTensor, TorchZip, check_objects, map_file
from .lightning import config_of
from .torch_file import metadata_of

METADATA, _LIGHTNING = ".metadata", "meta.pt"
_REMEDY = "convert it with python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pt"


class Piece(NamedTuple):
    """A part of a tensor: where it belongs, and where its bytes are."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


class DcpCheckpoint(Checkpoint):
    """A folder of ``torch.distributed.checkpoint``; a tensor is put together when it is asked for.

    It can be read only; merge it into a safetensors or torch file.

    Raises:
        CheckpointError: no ``.metadata``, damaged, cut short, of another storage format, or no model inside.
    """

    format = "dcp"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._maps: dict[str, Tensor] = {}
        state = self._read_index()
        storage = self._storage(state)
        names = _model_names(state, str(self.path))
        self.specs: dict[str, TensorSpec] = {}
        self._pieces: dict[str, list[Piece]] = {}
        for name, key in names.items():
            spec, pieces = self._tensor(name, key, state["state_dict_metadata"][key].state, storage)
            self.specs[name], self._pieces[name] = spec, pieces
        self.ties = {}
        self._check_files()
        self.metadata = self._read_metadata()

    def __getitem__(self, name: str) -> Tensor:
        spec, pieces = self.specs[name], self._pieces[name]
        if len(pieces) == 1 and pieces[0].sizes == spec.shape:
            return self._read(name, pieces[0])
        whole = torch.empty(spec.shape, dtype=spec.dtype)
        for piece in pieces:
            place = tuple(slice(start, start + size) for start, size in zip(piece.offsets, piece.sizes, strict=True))
            whole[place] = self._read(name, piece)
        return whole

    @property
    def files(self) -> list[Path]:
        return [self.path / METADATA, *(self.path / file for file in sorted(self._data_files()))]

    def close(self) -> None:
        self._maps.clear()

    def _data_files(self) -> set[str]:
        return {piece.file for pieces in self._pieces.values() for piece in pieces}

    def _read_index(self) -> Mapping[str, Any]:
        path = self.path / METADATA
        try:
            if path.stat().st_size > MAX_PICKLE:
                raise CheckpointError(f"{path}: refused, it is larger than {MAX_PICKLE >> 20} MiB")
            content = SafeUnpickler(path.read_bytes(), KNOWN, placeholders=True).load()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
        except CheckpointError:
            raise
        except Exception as error:
            kind = "refused" if isinstance(error, pickle.UnpicklingError) else "damaged or cut short"
            raise CheckpointError(f"{path}: {kind} ({error or type(error).__name__})") from error
        state = content.state if isinstance(content, Inert) else None
        if not isinstance(state, Mapping) or not isinstance(state.get("state_dict_metadata"), Mapping):
            raise CheckpointError(f"{path}: not the metadata of a distributed checkpoint")
        check_objects(content, str(path))
        return state

    def _storage(self, state: Mapping[str, Any]) -> dict[tuple[str, tuple[int, ...]], Mapping[str, Any]]:
        """Where each piece is, by name and offsets."""
        found: dict[tuple[str, tuple[int, ...]], Mapping[str, Any]] = {}
        for index, info in _entries(state.get("storage_data")):
            if isinstance(index, Inert) and isinstance(info, Inert) and isinstance(index.state, Mapping):
                name, offset = index.state.get("fqn"), index.state.get("offset")
                if isinstance(name, str) and isinstance(offset, (tuple, list)) and isinstance(info.state, Mapping):
                    with contextlib.suppress(ValueError):
                        found[name, _numbers(offset)] = info.state
        return found

    def _tensor(
        self, name: str, key: str, described: Any, storage: Mapping[tuple[str, tuple[int, ...]], Mapping[str, Any]]
    ) -> tuple[TensorSpec, list[Piece]]:
        try:
            spec = TensorSpec(_numbers(described["size"]), described["properties"].state[0])
            pieces = []
            for chunk in described["chunks"]:
                offsets, sizes = _numbers(chunk.state["offsets"]), _numbers(chunk.state["sizes"])
                info = storage[key, offsets]
                if info.get("transform_descriptors"):
                    raise CheckpointError(f"{self.path}: tensor {name!r} is compressed; {_REMEDY}")
                file, start, length = info["relative_path"], info["offset"], info["length"]
                pieces.append(Piece(offsets, sizes, file, start, length))
            numbers = [n for p in pieces for n in (*p.offsets, *p.sizes, p.start, p.length)]
            sound = isinstance(spec.dtype, torch.dtype) and all(
                isinstance(number, int) and 0 <= number < 1 << 62 for number in (*spec.shape, *numbers)
            )
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path}: tensor {name!r} is not described completely ({error!r})") from error
        if not sound or not _fills(spec.shape, pieces):
            raise CheckpointError(f"{self.path}: the pieces of tensor {name!r} do not make up its shape")
        for piece in pieces:
            if not isinstance(piece.file, str) or Path(piece.file).name != piece.file:
                raise CheckpointError(
                    f"{self.path}: refused, tensor {name!r} is said to be in {piece.file!r}, outside the folder"
                )
        return spec, pieces

    def _check_files(self) -> None:
        """All files are there and long enough."""
        ends: dict[str, int] = {}
        for pieces in self._pieces.values():
            for piece in pieces:
                ends[piece.file] = max(ends.get(piece.file, 0), piece.start + piece.length)
        for file, end in ends.items():
            path = self.path / file
            if not path.is_file():
                raise CheckpointError(f"{path}: missing, although {METADATA} lists it; fetch it again")
            if path.stat().st_size < end:
                raise CheckpointError(f"{path}: damaged or cut short; fetch it again")

    def _read(self, name: str, piece: Piece) -> Tensor:
        path = self.path / piece.file
        if piece.file not in self._maps:
            self._maps[piece.file] = map_file(path)
        archive = TorchZip(path, piece.start, piece.length, f"{path} ({name})", mapped=self._maps[piece.file])
        stored = archive.content
        if not isinstance(stored, StoredTensor) or stored.spec != TensorSpec(piece.sizes, self.specs[name].dtype):
            raise CheckpointError(f"{path}: a piece of tensor {name!r} is not what {METADATA} says")
        archive.check(name, stored)
        return archive.read(stored)

    def _read_metadata(self) -> Metadata:
        """Lightning keeps everything but the tensors in ``meta.pt``."""
        path = self.path / _LIGHTNING
        content = TorchZip(path, placeholders=True).content if path.is_file() else {}
        return metadata_of(self.format, config_of(content), None, str(path))


def _numbers(values: Any) -> tuple[int, ...]:
    """Sizes or offsets; anything else is not to be compared or printed, because that may take for ever."""
    if not isinstance(values, (tuple, list)) or len(values) > 64 or any(type(value) is not int for value in values):
        raise ValueError("sizes that are no numbers")
    return tuple(values)


def _entries(node: Any) -> Iterator[tuple[Any, Any]]:
    return iter(node.items()) if isinstance(node, Mapping) else iter(())


def _model_names(state: Mapping[str, Any], shown: str) -> dict[str, str]:
    """Keys of the model's tensors, by their names in its state dict."""
    ways = state.get("planner_data")
    ways = ways if isinstance(ways, Mapping) else {}
    paths: dict[str, tuple[str, ...]] = {}
    for key, described in state["state_dict_metadata"].items():
        if isinstance(described, Inert) and described.path.endswith("TensorStorageMetadata"):
            way = ways.get(key)
            parts = way if isinstance(way, (tuple, list)) else ()
            named = parts and all(isinstance(part, (str, int)) for part in parts)
            paths[key] = tuple(map(str, parts)) if named else (str(key),)
    roots = {path[0] for path in paths.values() if len(path) > 1}
    root = next((wrapper for wrapper in WRAPPERS if wrapper in roots), None)
    if root is not None:
        return {".".join(path[1:]): key for key, path in paths.items() if path[0] == root and len(path) > 1}
    if roots or not paths:
        held = ", ".join(sorted(roots)[:8]) or "no tensors"
        raise CheckpointError(f"{shown}: no model found under {', '.join(WRAPPERS)}; it holds {held}. {_REMEDY}")
    return {".".join(path): key for key, path in paths.items()}


def _fills(shape: tuple[int, ...], pieces: list[Piece]) -> bool:
    """Whether the pieces lie inside the shape, do not overlap, and leave nothing out."""
    total = 0
    for piece in pieces:
        if not len(piece.offsets) == len(piece.sizes) == len(shape):
            return False
        if any(o + s > n for o, s, n in zip(piece.offsets, piece.sizes, shape, strict=True)):
            return False
        total += math.prod(piece.sizes)
    if total != math.prod(shape):
        return False
    if all(piece.sizes[1:] == shape[1:] for piece in pieces):  # rows of the tensor, the usual way
        rows = sorted((p.offsets[0], p.offsets[0] + p.sizes[0]) for p in pieces) if shape else []
        return all(a[1] <= b[0] for a, b in pairwise(rows)) if shape else len(pieces) == 1
    return not any(_overlap(a, b) for i, a in enumerate(pieces) for b in pieces[:i])


def _overlap(a: Piece, b: Piece) -> bool:
    return all(max(p, q) < min(p + m, q + n) for p, m, q, n in zip(a.offsets, a.sizes, b.offsets, b.sizes, strict=True))
