"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import re
import shutil
import tempfile
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import OutputError

_WRITE_CHUNK = 16 << 20


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


def check_output(output: Path, overwrite: bool) -> None:
    """Refuses an output that exists (unless it may be replaced) and one whose parent folder is missing.

    Raises:
        OutputError: with the remedy.
    """
    if (output.exists() or output.is_symlink()) and not overwrite:
        raise OutputError(f"{output}: exists already; pass overwrite=true to replace it, or choose another output")
    if not output.parent.is_dir():
        raise OutputError(f"{output}: the folder {output.parent} does not exist; create it first")
    remove_stale(output)


def partial_path(output: Path) -> Path:
    """The hidden name that an output has at the moment in which it gets its own."""
    return output.with_name(f".{output.name}.{platform.node()}-{os.getpid()}.partial")


def remove_stale(output: Path) -> None:
    """Removes what processes of this machine left beside ``output`` that were killed at that very moment."""
    pattern = re.compile(rf"\.{re.escape(output.name)}\.{re.escape(platform.node())}-(\d+)(-\w+)?\.partial")
    with contextlib.suppress(OSError):
        for path in output.parent.iterdir():
            if (match := pattern.fullmatch(path.name)) and not _runs(int(match[1])):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


class PendingFile:
    """A file without a name: it takes its place at :meth:`publish`, and a crash before that leaves nothing behind.

    On file systems that cannot hold unnamed files it is a hidden ``.*.partial`` beside the output.
    Tensors are written from several threads, at most one thread per tensor.
    """

    def __init__(self, output: Path, layout: Layout) -> None:
        self.output = output
        self.layout = layout
        self.checksums: dict[str, int] = {}
        self._lock = threading.Lock()
        self._written: dict[str, int] = {}
        self._name: Path | None = None
        with explained(output):
            self.fd = self._open()
        try:
            with explained(output):
                if hasattr(os, "posix_fallocate"):  # a full disk is found now, not at the end
                    os.posix_fallocate(self.fd, 0, max(layout.size, 1))
                os.ftruncate(self.fd, layout.size)
                for offset, constant in layout.constants.items():
                    self.put(offset, constant)
        except BaseException:
            self.discard()
            raise

    def _open(self) -> int:
        with contextlib.suppress(OSError, AttributeError):
            return os.open(self.output.parent, os.O_TMPFILE | os.O_RDWR, 0o666)
        fd, name = tempfile.mkstemp(
            prefix=f"{partial_path(self.output).stem}-", suffix=".partial", dir=self.output.parent
        )
        self._name = Path(name)
        os.fchmod(fd, 0o666 & ~_umask())
        return fd

    def put(self, offset: int, data: bytes | memoryview) -> None:
        """Writes bytes at a place of the file."""
        view = memoryview(data).cast("B")
        with explained(self.output):
            while view:
                written = os.pwrite(self.fd, view[:_WRITE_CHUNK], offset)
                offset += written
                view = view[written:]

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Writes consecutive elements of a tensor into its slot and keeps a running CRC-32 of the slot."""
        slot = self.layout.slots[name]
        flat = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        data = memoryview(flat.numpy())  # type: ignore[arg-type]
        begin = start * values.element_size()
        if begin != self._written.get(name, 0) or begin + len(data) > slot.nbytes:
            raise ValueError(f"blocks of {name!r} must come in order and fit its slot")
        self.put(slot.offset + begin, data)
        checksum = zlib.crc32(data, self.checksums.get(name, 0))
        with self._lock:
            self.checksums[name] = checksum
            self._written[name] = begin + len(data)

    def append(self, data: bytes) -> int:
        """Writes bytes at the end and returns the offset at which they stand."""
        offset = os.fstat(self.fd).st_size
        self.put(offset, data)
        return offset

    def check_complete(self) -> None:
        """Raises if a tensor was not written to its end: a bug, never a user's error."""
        short = [name for name, slot in self.layout.slots.items() if self._written.get(name, 0) != slot.nbytes]
        if short:
            raise RuntimeError(f"not all tensors were written: {short[:5]}")

    def sync(self) -> None:
        """Waits until everything written is on the disk."""
        self.check_complete()
        with explained(self.output):
            os.fsync(self.fd)

    def publish(self, target: Path | None = None) -> None:
        """Gives the file its name, replacing what has it now."""
        target = target or self.output
        self.sync()
        with explained(target):
            if self._name is None:
                self._name = partial_path(target)
                self._name.unlink(missing_ok=True)
                # Python follows the link only when a folder is passed; an absolute source ignores it.
                folder = os.open(target.parent, os.O_RDONLY)
                try:
                    os.link(f"/proc/self/fd/{self.fd}", self._name, src_dir_fd=folder, follow_symlinks=True)
                finally:
                    os.close(folder)
            os.replace(self._name, target)
            self._name = None
            _sync_folder(target.parent)
        self._close()

    def discard(self) -> None:
        """Drops the file; harmless after :meth:`publish`."""
        self._close()
        if self._name is not None:
            self._name.unlink(missing_ok=True)
            self._name = None

    def _close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class PendingFolder:
    """A folder of large pending files and small finished ones that appears whole."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.files: dict[str, PendingFile] = {}

    def add(self, name: str, layout: Layout) -> PendingFile:
        """Starts a large file of the folder."""
        self.files[name] = PendingFile(self.output.with_name(f"{self.output.name}.{name}"), layout)
        return self.files[name]

    def publish(self, small_files: Mapping[str, bytes | Path]) -> None:
        """Makes the folder appear with its large files and these small ones (contents, or paths to copy)."""
        partial = partial_path(self.output)
        for file in self.files.values():
            file.sync()  # so that the folder, which cannot be without a name, is there for a moment only
        with explained(self.output):
            shutil.rmtree(partial, ignore_errors=True)
            try:
                partial.mkdir()
                for name, file in self.files.items():
                    file.publish(partial / name)
                for name, content in small_files.items():
                    if isinstance(content, Path):
                        shutil.copyfile(content, partial / name)
                    else:
                        (partial / name).write_bytes(content)
                _sync_folder(partial)
                _put_in_place(partial, self.output)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def discard(self) -> None:
        """Drops everything; harmless after :meth:`publish`."""
        for file in self.files.values():
            file.discard()


def _put_in_place(new: Path, target: Path) -> None:
    """Renames ``new`` to ``target``; an existing target changes places with it in one step where Linux can."""
    if not (target.exists() or target.is_symlink()):
        os.rename(new, target)
    elif not _exchange(new, target):
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        os.rename(target, old)
        os.rename(new, target)
        os.rename(old, new)
    _sync_folder(target.parent)
    if new.is_symlink() or new.is_file():  # what stood at the target; a folder is left to the caller
        new.unlink()


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two paths atomically with renameat2(RENAME_EXCHANGE); False where that is not to be had."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
