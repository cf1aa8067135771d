"""The layout of files of ``torch.save`` whose tensors are not known yet."""

from __future__ import annotations

import mmap
import os
import struct
import types
import zlib
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ._checkpoint import TensorSpec
from ._pending import Layout, Slot
from ._pickle import InertPickler, TorchDict
from ._torch_zip import StoredTensor

_CENTRAL_HEADER = struct.Struct("<4s6H3I5H2I")
_DESCRIPTOR = b"PK\x07\x08"


def lay_out(specs: Mapping[str, TensorSpec], ties: Mapping[str, str], attributes: Mapping[str, Any]) -> Layout:
    """The layout of a ``torch.save`` file of a state dict.

    Args:
        specs: shape and type of every tensor.
        ties: further names, with the tensor whose storage they share.
        attributes: attributes of the dictionary that ``torch.nn.Module.state_dict`` sets (``_metadata``).
    """

    def build(tensors: Mapping[str, Tensor]) -> TorchDict:
        state = TorchDict(tensors)
        state.update({alias: tensors[owner] for alias, owner in ties.items()})
        state.attributes = attributes
        return state

    return lay_out_objects(specs, build)


def lay_out_objects(
    specs: Mapping[str, TensorSpec],
    build: Callable[[Mapping[str, Tensor]], Any],
    kept: Mapping[StoredTensor, Tensor] | None = None,
    protocol: int = 2,
) -> Layout:
    """The layout of a ``torch.save`` file of any objects, made by ``torch.save`` itself with the data left out.

    Args:
        specs: shape and type of every tensor that is not known yet.
        build: makes the objects from hollow tensors; placeholders in them are written as they were read.
        kept: tensors of the file that the objects come from, which are written as they are.
        protocol: version of the pickle.
    """
    known = kept or {}
    hollow = _hollow(specs)
    order: list[Tensor] = []

    class Pickler(InertPickler):
        """Writes kept tensors and notes in which order tensors come, which is the order of the storages."""

        def save(self, obj: Any, save_persistent_id: bool = True) -> None:
            if type(obj) is StoredTensor:
                obj = known[obj]
            if isinstance(obj, Tensor) and id(obj) not in self.memo:
                order.append(obj)
            super().save(obj, save_persistent_id)

    module = types.SimpleNamespace(Pickler=Pickler, __name__="pickle")
    recorder = _Recorder()
    with torch.serialization.skip_data():
        torch.save(build(hollow), recorder, pickle_module=module, pickle_protocol=protocol)  # type: ignore[arg-type]
    names = {id(tensor): name for name, tensor in hollow.items()}
    slots = {name: Slot(0, 0) for name, spec in specs.items() if not spec.nbytes}
    settled: dict[str, Tensor] = {}
    for tensor, gap in zip((tensor for tensor in order if tensor.nbytes), recorder.gaps, strict=True):
        name = names.get(id(tensor), f"\0kept/{len(settled)}")
        slots[name] = Slot(*gap)
        assert slots[name].nbytes == tensor.nbytes
        if id(tensor) not in names:
            settled[name] = tensor
    layout = Layout(recorder.position, recorder.constants, slots)
    _settle(layout, settled)
    return layout


def _settle(layout: Layout, known: Mapping[str, Tensor]) -> None:
    """Turns slots whose tensors are known into constants, with their checksums."""
    places = checksum_places(layout) if known else {}
    for name, tensor in known.items():
        data = bytes(memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
        for place in places[name]:
            start = max(offset for offset in layout.constants if offset <= place)
            constant = bytearray(layout.constants[start])
            constant[place - start : place - start + 4] = zlib.crc32(data).to_bytes(4, "little")
            layout.constants[start] = bytes(constant)
        layout.constants[layout.slots.pop(name).offset] = data


def _hollow(specs: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
    """Tensors of the right shape and type over addresses that are reserved but never touched: they take no memory."""
    offsets = list(accumulate((-(-spec.nbytes // 64) * 64 for spec in specs.values()), initial=0))
    no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)
    space = mmap.mmap(-1, max(offsets[-1], 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    return {
        name: torch.frombuffer(space, dtype=spec.dtype, count=spec.numel, offset=offset).view(spec.shape)
        if spec.nbytes
        else torch.empty(spec.shape, dtype=spec.dtype)
        for (name, spec), offset in zip(specs.items(), offsets, strict=False)
    }


class _Recorder:
    """A file that keeps what is written and remembers what is skipped."""

    def __init__(self) -> None:
        self.position = 0
        self.constants: dict[int, bytes] = {}
        self.gaps: list[tuple[int, int]] = []
        self._start = 0

    def write(self, data: bytes) -> int:
        self.constants[self._start] = self.constants.get(self._start, b"") + bytes(data)
        self.position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int) -> None:
        assert whence == os.SEEK_CUR
        self.gaps.append((self.position, offset))
        self.position = self._start = self.position + offset

    def flush(self) -> None:
        """Nothing is held back."""


def checksum_places(layout: Layout) -> dict[str, list[int]]:
    """Where the CRC-32 of every slot belongs: behind its data and in the central directory.

    ``torch.save`` wrote zeros there because it had no data to sum up; ``unzip -t`` and Python's zipfile check them.
    """
    tail_offset = max(layout.constants)
    tail = layout.constants[tail_offset]
    end = tail.rfind(b"PK\x05\x06")
    *_, directory_size, directory_offset, _ = struct.unpack_from("<4s4H2IH", tail, end)
    if directory_offset == 0xFFFFFFFF or directory_size == 0xFFFFFFFF:
        end64 = tail.rfind(b"PK\x06\x06")
        directory_size, directory_offset = struct.unpack_from("<2Q", tail, end64 + 40)
    by_header: dict[int, int] = {}
    position = directory_offset - tail_offset
    while position < directory_offset - tail_offset + directory_size:
        fields = _CENTRAL_HEADER.unpack_from(tail, position)
        name_length, extra_length, comment_length = fields[10:13]
        header = fields[16]
        if header == 0xFFFFFFFF:
            header = _zip64_header_offset(tail, position + _CENTRAL_HEADER.size + name_length, extra_length, fields)
        by_header[header] = directory_offset + (position - (directory_offset - tail_offset)) + 16
        position += _CENTRAL_HEADER.size + name_length + extra_length + comment_length
    headers = sorted(by_header)
    places = {}
    for name, slot in layout.slots.items():
        if slot.nbytes:
            header = max(offset for offset in headers if offset < slot.offset)
            places[name] = [slot.offset + slot.nbytes + len(_DESCRIPTOR), by_header[header]]
    return places


def _zip64_header_offset(data: bytes, position: int, length: int, fields: tuple[Any, ...]) -> int:
    """The 64-bit offset of a local header, from the extra field of a central directory entry."""
    end = position + length
    while position < end:
        kind, size = struct.unpack_from("<2H", data, position)
        if kind == 0x0001:  # holds, in this order, only those values that overflowed: size, compressed size, offset
            index = (fields[9] == 0xFFFFFFFF) + (fields[8] == 0xFFFFFFFF)
            return struct.unpack_from("<Q", data, position + 4 + 8 * index)[0]
        position += 4 + size
    raise ValueError("a zip64 entry without its offset")
