"""PyTorch's zip format, read without running anything from it and without reading tensors, and laid out for writing.

A file of ``torch.save`` is a zip archive of stored (uncompressed) members: a pickle that describes the objects and one
member per storage, aligned to 64 bytes. The pickle is read by an unpickler that knows tensors, dictionaries and nothing
else; tensors become views of the memory-mapped file.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from ._checkpoint import TensorSpec
from ._pending import Layout, Slot

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_CENTRAL_HEADER = struct.Struct("<4s6H3I5H2I")
_DESCRIPTOR = b"PK\x07\x08"
_MAX_PICKLE = 256 << 20  # a pickle holds names and shapes only; the largest models need a few megabytes

_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip


class Window(io.RawIOBase):
    """A part of an open file that behaves as a file."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd, self._offset, self._size, self._position = fd, offset, size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence])
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._position))
        data = os.pread(self._fd, count, self._offset + self._position)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


class StoredTensor(NamedTuple):
    """A tensor as the pickle describes it: a strided view of a storage, not read yet.

    ``storage`` is the name of the storage's member; two tensors that name the same storage share memory.
    """

    storage: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.shape, self.dtype)


class _Storage(NamedTuple):
    name: str
    dtype: torch.dtype


class _RestrictedUnpickler(pickle.Unpickler):
    """Builds dictionaries of tensors; any other class or function in the pickle is refused by name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        raise pickle.UnpicklingError(f"it calls {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, _numel = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError("it refers to something that is not a storage")
        return _Storage(key, dtype)


def _rebuild_tensor(storage: _Storage, offset: int, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    shape, stride = tuple(shape), tuple(stride)
    if len(shape) != len(stride) or any(not isinstance(n, int) or n < 0 for n in (offset, *shape, *stride)):
        raise pickle.UnpicklingError("it describes a tensor with impossible sizes")
    return StoredTensor(storage.name, storage.dtype, offset, shape, stride)


def _rebuild_parameter(data: StoredTensor, *_: Any) -> StoredTensor:
    return data


class TorchZip:
    """The objects of a ``torch.save`` file, with tensors as :class:`StoredTensor` until they are asked for.

    Args:
        path: file that holds the archive.
        offset, size: where the archive stands in the file (inside a tar, for example); by default all of it.

    Attributes:
        content: what was saved.

    Raises:
        CheckpointError: damaged, compressed, of the format before PyTorch 1.6, or its pickle wants to call code.
    """

    def __init__(self, path: Path, offset: int = 0, size: int | None = None, name: str | None = None) -> None:
        self.name = name or str(path)
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            size = length - offset if size is None else size
            if offset + size > length:
                raise CheckpointError(
                    f"{self.name}: the file ends before its tensors do; it was cut short, fetch it again"
                )
            try:
                with zipfile.ZipFile(io.BufferedReader(Window(file.fileno(), offset, size))) as archive:
                    self._places = self._read_places(archive, file.fileno(), offset, size)
                    self.content = self._unpickle(archive)
            except zipfile.BadZipFile as error:
                raise CheckpointError(
                    f"{self.name}: not a file of torch.save, or cut short ({error}); "
                    "fetch it again, or save it anew with PyTorch 1.6 or later"
                ) from error
        self._bytes = torch.from_file(str(path), shared=False, size=length, dtype=torch.uint8)

    def _read_places(self, archive: zipfile.ZipFile, fd: int, offset: int, size: int) -> dict[str, tuple[int, int]]:
        """Absolute offset and length of every storage."""
        places = {}
        for member in archive.infolist():
            folder, _, key = member.filename.rpartition("/")
            if not folder.endswith("/data"):
                continue
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise CheckpointError(f"{self.name}: tensors are compressed; save it anew with torch.save")
            header = os.pread(fd, _LOCAL_HEADER.size, offset + member.header_offset)
            if len(header) < _LOCAL_HEADER.size:
                raise zipfile.BadZipFile("a member lies outside the file")
            # The padding that aligns a storage is an extra field of the local header only.
            *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
            start = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length
            if start + member.file_size > size:
                raise zipfile.BadZipFile("a member lies outside the file")
            places[key] = (offset + start, member.file_size)
        return places

    def _unpickle(self, archive: zipfile.ZipFile) -> Any:
        pickles = [member for member in archive.infolist() if member.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE:
            raise CheckpointError(f"{self.name}: not a file of torch.save")
        try:
            return _RestrictedUnpickler(io.BytesIO(archive.read(pickles[0]))).load()
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{self.name}: refused, because its pickle holds more than tensors: {error}. "
                "If you trust its source, load it with torch and save the state dict alone"
            ) from error
        except Exception as error:
            raise CheckpointError(f"{self.name}: its pickle is damaged ({type(error).__name__}: {error})") from error

    def check(self, name: str, stored: StoredTensor) -> None:
        """Raises :class:`CheckpointError` if the tensor reaches outside its storage or the storage is missing."""
        _, length = self._places.get(stored.storage, (0, -1))
        last = stored.offset + sum((n - 1) * step for n, step in zip(stored.shape, stored.stride, strict=True))
        needed = (last + 1) * stored.dtype.itemsize if stored.spec.numel else 0
        if length < needed:
            raise CheckpointError(f"{self.name}: tensor {name!r} is damaged: its data are missing or cut short")

    def read(self, stored: StoredTensor) -> Tensor:
        """The tensor as a view of the mapped file (a copy only where the file is not aligned to its type)."""
        start, length = self._places[stored.storage]
        raw = self._bytes[start : start + length - length % stored.dtype.itemsize]
        if start % stored.dtype.itemsize:
            raw = raw.clone()
        flat = raw.view(stored.dtype)
        return flat.as_strided(stored.shape, stored.stride, flat.storage_offset() + stored.offset)


def lay_out(specs: Mapping[str, TensorSpec], ties: Mapping[str, str], attributes: Mapping[str, Any]) -> Layout:
    """The layout of a ``torch.save`` file of a state dict, made by ``torch.save`` itself with the data left out.

    Args:
        specs: shape and type of every tensor.
        ties: further names, with the tensor whose storage they share.
        attributes: attributes of the dictionary that ``torch.nn.Module.state_dict`` sets (``_metadata``).
    """
    state: OrderedDict[str, Tensor] = OrderedDict(_hollow(specs))
    state.update({alias: state[owner] for alias, owner in ties.items()})
    state.__dict__.update(attributes)
    recorder = _Recorder()
    with torch.serialization.skip_data():
        torch.save(state, recorder)  # type: ignore[arg-type]  # it needs no more than these three methods
    # Storages are written in the order in which the dictionary names them; empty ones need no place.
    filled = [name for name, spec in specs.items() if spec.nbytes]
    slots = {name: Slot(*gap) for name, gap in zip(filled, recorder.gaps, strict=True)}
    assert all(slots[name].nbytes == specs[name].nbytes for name in filled)
    slots.update({name: Slot(0, 0) for name, spec in specs.items() if not spec.nbytes})
    return Layout(recorder.position, recorder.constants, slots)


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
