"""PyTorch's zip format, read without running anything from it and without reading tensors.

A file of ``torch.save`` is a zip archive of stored (uncompressed) members: a pickle that describes the objects and one
member per storage, aligned to 64 bytes. Tensors become views of the memory-mapped file.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from ._checkpoint import TensorSpec
from ._pickle import MAX_DEPTH, MAX_PICKLE, ORDERED_DICT, Known, SafeUnpickler
from ._plain import unfolds, walk

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_END = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_MAX_DIRECTORY = 64 << 20  # bytes; a hundred for each storage

_MAX_EXPANDED = 64 << 20  # bytes by which tensors may be larger than what is stored

_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip
_DTYPE_NAMES = (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32",
    "uint64", "bool", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
)  # fmt: skip


class Window(io.RawIOBase):
    """A part of an open file that behaves as a file."""

    def __init__(self, fd: int, offset: int, size: int, name: str) -> None:
        self._fd, self._offset, self._size, self._position = fd, offset, size, 0
        self._name = name

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
        data = _pread(self._fd, count, self._offset + self._position, self._name)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


def _pread(fd: int, count: int, offset: int, name: str) -> bytes:
    """Raises :class:`CheckpointError` where the disk or the network fails; zipfile would call that a damaged file."""
    try:
        return os.pread(fd, count, offset)
    except OSError as error:
        raise CheckpointError(f"{name}: cannot be read ({error.strerror or error})") from error


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


class StoredData(NamedTuple):
    """A storage as the pickle names it."""

    name: str
    dtype: torch.dtype


def _size(sizes: Any = ()) -> tuple[Any, ...]:
    if not isinstance(sizes, (tuple, list)) or len(sizes) > 64:
        raise pickle.UnpicklingError("it describes a tensor with impossible sizes")
    return tuple(sizes)


def _rebuild_tensor(storage: StoredData, offset: int, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    shape, stride = _size(shape), _size(stride)
    sizes = (offset, *shape, *stride)
    if len(shape) != len(stride) or any(type(n) is not int or not 0 <= n < 1 << 62 for n in sizes):
        raise pickle.UnpicklingError("it describes a tensor with impossible sizes")
    if not isinstance(storage, StoredData):
        raise pickle.UnpicklingError("it describes a tensor without a storage")
    return StoredTensor(storage.name, storage.dtype, offset, shape, stride)


def _rebuild_typed(storage: StoredData, offset: int, shape: Any, stride: Any, *more: Any) -> StoredTensor:
    """As the above for types that have no storage class of their own; the type follows gradient and hooks."""
    dtype = more[2]
    if not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("it describes a tensor without a type")
    return _rebuild_tensor(StoredData(storage.name, dtype), offset, shape, stride)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _persistent(pid: Any) -> StoredData:
    kind, dtype, key, _location, _numel = pid
    if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
        raise pickle.UnpicklingError("it refers to something that is not a storage")
    return StoredData(key, dtype)


KNOWN: dict[tuple[str, str], Any] = {
    **{
        (known.module, known.name): known
        for known in (
            ORDERED_DICT,
            Known("torch", "Size", _size),
            Known("torch._utils", "_rebuild_tensor_v2", _rebuild_tensor),
            Known("torch._utils", "_rebuild_tensor_v3", _rebuild_typed),
            Known("torch._utils", "_rebuild_parameter", _rebuild_parameter),
            Known("torch._utils", "_rebuild_parameter_with_state", _rebuild_parameter),
        )
    },
    ("torch.storage", "UntypedStorage"): torch.uint8,
    **{("torch", name): dtype for name, dtype in _STORAGE_DTYPES.items()},
    **{("torch", name): getattr(torch, name) for name in _DTYPE_NAMES},
}
"""What pickles of tensors name."""


class TorchZip:
    """The objects of a ``torch.save`` file, with tensors as :class:`StoredTensor` until they are asked for.

    Args:
        path: file that holds the archive.
        offset, size: where the archive stands in the file (inside a tar, for example); by default all of it.
        name: how messages call it.
        placeholders: read objects of other classes as placeholders instead of refusing the file.
        mapped: the bytes of the file, if it is mapped already.

    Attributes:
        content: what was saved.
        protocol: version of the pickle.

    Raises:
        CheckpointError: damaged, compressed, of the format before PyTorch 1.6, or its pickle wants to call code.
    """

    def __init__(
        self,
        path: Path,
        offset: int = 0,
        size: int | None = None,
        name: str | None = None,
        *,
        placeholders: bool = False,
        mapped: Tensor | None = None,
    ) -> None:
        self.name = name or str(path)
        self.protocol = 2
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            size = length - offset if size is None else size
            if offset < 0 or size < 0 or offset + size > length:
                raise CheckpointError(
                    f"{self.name}: the file ends before its tensors do; it was cut short, fetch it again"
                )
            try:
                _check_directory(file.fileno(), offset, size, self.name)
                with zipfile.ZipFile(io.BufferedReader(Window(file.fileno(), offset, size, self.name))) as archive:
                    root = self._root(archive)
                    self._places = self._read_places(archive, root, file.fileno(), offset, size)
                    self.content = self._unpickle(archive, root, placeholders)
            except (CheckpointError, MemoryError, OSError):
                raise
            except Exception as error:  # zipfile lets the errors of its parts through: of numbers, names, unpackers
                raise CheckpointError(
                    f"{self.name}: not a file of torch.save, or cut short ({error}); "
                    "fetch it again, or save it anew with PyTorch 1.6 or later"
                ) from error
        self._bytes = map_file(path) if mapped is None else mapped

    def _root(self, archive: zipfile.ZipFile) -> str:
        """The folder in the archive that holds everything."""
        names = set(archive.namelist())
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(roots) != 1:
            raise CheckpointError(f"{self.name}: not a file of torch.save (a zip archive without data.pkl)")
        if f"{roots[0]}constants.pkl" in names:
            raise CheckpointError(
                f"{self.name}: a TorchScript program, not a checkpoint; save the model's state_dict() with torch.save"
            )
        if f"{roots[0]}byteorder" in names and self._member(archive, f"{roots[0]}byteorder", 16) != b"little":
            raise CheckpointError(f"{self.name}: written by a big-endian machine; save it anew on another")
        return roots[0]

    def _read_places(
        self, archive: zipfile.ZipFile, root: str, fd: int, offset: int, size: int
    ) -> dict[str, tuple[int, int]]:
        """Absolute offset and length of every storage."""
        places = {}
        for member in archive.infolist():
            folder, _, key = member.filename.rpartition("/")
            if folder != f"{root}data":
                continue
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise CheckpointError(f"{self.name}: tensors are compressed; save it anew with torch.save")
            header = _pread(fd, _LOCAL_HEADER.size, offset + member.header_offset, self.name)
            if len(header) < _LOCAL_HEADER.size:
                raise zipfile.BadZipFile("a member lies outside the file")
            # The padding that aligns a storage is an extra field of the local header only.
            *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
            start = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length
            if member.header_offset < 0 or start + member.file_size > size:
                raise zipfile.BadZipFile("a member lies outside the file")
            places[key] = (offset + start, member.file_size)
        return places

    def _unpickle(self, archive: zipfile.ZipFile, root: str, placeholders: bool) -> Any:
        data = self._member(archive, f"{root}data.pkl", MAX_PICKLE)
        unpickler = SafeUnpickler(data, KNOWN, _persistent, placeholders)
        try:
            content = unpickler.load()
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{self.name}: refused, because its pickle holds more than tensors: {error}. "
                "If you trust its source, load it with torch and save the state dict alone"
            ) from error
        except MemoryError:
            raise
        except Exception as error:
            raise CheckpointError(f"{self.name}: its pickle is damaged ({type(error).__name__}: {error})") from error
        self.protocol = max(2, unpickler.proto)
        check_objects(content, self.name)
        return content

    def _member(self, archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
        """The content of a small member."""
        member = archive.getinfo(name)
        if max(member.file_size, member.compress_size) > limit:  # zipfile asks for as much memory as the archive says
            raise CheckpointError(
                f"{self.name}: refused, its member {name} is {member.file_size} bytes large; "
                f"what describes tensors never needs more than {limit}"
            )
        return archive.read(member)

    def check_all(self, tensors: Mapping[str, StoredTensor]) -> None:
        """Raises :class:`CheckpointError` as :meth:`check` does, or if the tensors are much larger than what is stored.

        A stride of 0 makes a tensor of any size from one number; ``torch.expand`` does so, but not to weights.
        """
        for name, tensor in tensors.items():
            self.check(name, tensor)
        stored = sum(length for _, length in self._places.values())
        claimed = sum(tensor.spec.nbytes for tensor in set(tensors.values()))
        if claimed > 2 * stored + _MAX_EXPANDED:
            raise CheckpointError(
                f"{self.name}: refused, its tensors would be {claimed} bytes large, of which it holds {stored}"
            )

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


def check_objects(content: Any, shown: str) -> None:
    """Raises :class:`CheckpointError` if to go through all objects would take very long or crash."""
    if any(depth > MAX_DEPTH for _, depth in walk(content)):
        raise CheckpointError(f"{shown}: refused, its objects are nested more than {MAX_DEPTH} deep")
    if unfolds(content):
        raise CheckpointError(f"{shown}: refused, it unfolds into millions of objects")


def map_file(path: Path) -> Tensor:
    """The bytes of a file, mapped: they take no memory until touched, and writing to them does not reach the file.

    Raises:
        CheckpointError: it cannot be mapped.
    """
    try:
        return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _check_directory(fd: int, offset: int, size: int, name: str) -> None:
    """Refuses an archive whose table of contents would take more memory than a checkpoint's ever does."""
    tail = _pread(fd, min(size, 1 << 16), offset + max(0, size - (1 << 16)), name)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or end + _END.size > len(tail):
        raise zipfile.BadZipFile("its table of contents is missing")
    *_, directory, _, _ = _END.unpack_from(tail, end)
    locator = end - _END64_LOCATOR.size
    if locator >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":
        end64 = locator - _END64.size
        if end64 >= 0 and tail[end64 : end64 + 4] == b"PK\x06\x06":
            directory = max(directory if directory != 0xFFFFFFFF else 0, _END64.unpack_from(tail, end64)[-2])
    if directory > _MAX_DIRECTORY:
        raise CheckpointError(f"{name}: refused, its table of contents is {directory >> 20} MiB large")
