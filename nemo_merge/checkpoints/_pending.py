"""Large files in the making: laid out before their tensors are known, written from several threads, resumable."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import OutputError
from ._journal import Journal

_CHUNK = 16 << 20


@dataclass(frozen=True)
class Slot:
    """Place of one tensor in a file: byte offset and length."""

    offset: int
    nbytes: int


@dataclass
class Layout:
    """Where everything goes in a file whose tensors are not known yet.

    Attributes:
        size: length of the file in bytes.
        constants: bytes that are known already, by offset.
        slots: place of every tensor.
    """

    size: int
    constants: dict[int, bytes] = field(default_factory=dict)
    slots: dict[str, Slot] = field(default_factory=dict)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns the operating system's errors while writing ``path`` into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(
                f"{path}: no space left on the disk; nothing was written, free some space and run again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise OutputError(f"{path}: no permission to write into {path.parent}; choose another output") from error
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


class PendingFile:
    """A file that is filled tensor by tensor; what an interrupted process finished is found again.

    Tensors are written from several threads, at most one thread per tensor.

    Args:
        path: the file, in a work folder; it may be there already from an interrupted process.
        layout: where everything goes.
        journal: notes of the tensors that are finished; None for a file that is always written anew.
        shown: the output that messages name.
        checksums: also keep the CRC-32 of every slot, which zip archives need.

    Attributes:
        finished: tensors that an earlier process finished; their bytes were compared with its notes.
        checksums: CRC-32 of the slots that are complete, if asked for.
    """

    def __init__(
        self,
        path: Path,
        layout: Layout,
        journal: Journal | None = None,
        *,
        shown: Path | None = None,
        checksums: bool = False,
    ) -> None:
        self.path = path
        self.layout = layout
        self.finished: set[str] = set()
        self.checksums: dict[str, int] = {}
        self._with_checksums = checksums
        self._shown = shown or path
        self._journal = journal
        self._lock = threading.Lock()
        self._written: dict[str, int] = {}
        self._sums: dict[str, int] = {}
        with explained(self._shown):
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with explained(self._shown):
                known = journal.of(path.name) if journal and os.fstat(self.fd).st_size >= layout.size else {}
                if not known and hasattr(os, "posix_fallocate"):  # a full disk is found now, not at the end
                    os.posix_fallocate(self.fd, 0, max(layout.size, 1))
                os.ftruncate(self.fd, layout.size)
                for offset, constant in layout.constants.items():
                    self.put(offset, constant)
            for name, total in known.items():
                if name in layout.slots:
                    self._look_again(name, total)
        except BaseException:
            self.close()
            raise

    def put(self, offset: int, data: bytes | memoryview) -> None:
        """Writes bytes at a place of the file."""
        view = memoryview(data).cast("B")
        with explained(self._shown):
            while view:
                written = os.pwrite(self.fd, view[:_CHUNK], offset)
                offset += written
                view = view[written:]

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Writes consecutive elements of a tensor into its slot, and notes the tensor when it is complete."""
        slot = self.layout.slots[name]
        flat = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        data = memoryview(flat.numpy())  # type: ignore[arg-type]
        begin = start * values.element_size()
        if begin != self._written.get(name, 0) or begin + len(data) > slot.nbytes:
            raise ValueError(f"blocks of {name!r} must come in order and fit its slot")
        self.put(slot.offset + begin, data)
        self._add(name, begin, data)
        if self._journal is not None and begin + len(data) == slot.nbytes:
            with explained(self._shown):
                self._journal.note(self.path.name, name, self._sums[name])

    def append(self, data: bytes) -> int:
        """Writes bytes at the end and returns the offset at which they stand."""
        offset = os.fstat(self.fd).st_size
        self.put(offset, data)
        return offset

    def sync(self) -> None:
        """Waits until everything written is on the disk."""
        short = [name for name, slot in self.layout.slots.items() if self._written.get(name, 0) != slot.nbytes]
        if short:
            raise RuntimeError(f"not all tensors were written: {short[:5]}")
        with explained(self._shown):
            os.fsync(self.fd)

    def close(self) -> None:
        """Closes the file and leaves it where it is."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _add(self, name: str, begin: int, data: memoryview) -> None:
        total = (self._sums.get(name, 0) + byte_sum(data, begin)) & _MASK
        checksum = zlib.crc32(data, self.checksums.get(name, 0)) if self._with_checksums else 0
        with self._lock:
            self._written[name] = begin + len(data)
            self._sums[name] = total
            if self._with_checksums:
                self.checksums[name] = checksum

    def _look_again(self, name: str, expected: int) -> None:
        """Takes over a tensor of an earlier process if the file holds what that process noted."""
        slot = self.layout.slots[name]
        for begin in range(0, slot.nbytes, _CHUNK):
            data = os.pread(self.fd, min(_CHUNK, slot.nbytes - begin), slot.offset + begin)
            self._add(name, begin, memoryview(data))
        if self._written.get(name, 0) == slot.nbytes and self._sums.get(name, 0) == expected:
            self.finished.add(name)
        else:  # the machine went down before the bytes reached the disk
            for notes in (self._written, self._sums, self.checksums):
                notes.pop(name, None)


_MASK = (1 << 64) - 1


def byte_sum(data: memoryview, offset: int = 0) -> int:
    """Sum of the bytes as little-endian words of 64 bits, modulo 2**64; sums of consecutive parts add up.

    It runs at the speed of memory and tells bytes that never reached the disk (pages of zeros) from those that did.

    Args:
        data: the bytes.
        offset: where they stand in the whole; words are counted from there.
    """
    lead = -offset % 8
    head, tail = data[:lead], data[lead:]
    words = len(tail) // 8 * 8
    total = int(np.frombuffer(tail[:words], dtype="<u8").sum(dtype=np.uint64))
    total += int.from_bytes(tail[words:], "little") + (int.from_bytes(head, "little") << (8 * (offset % 8)))
    return total & _MASK
