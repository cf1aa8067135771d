"""The hidden folder in which an output is made: it appears whole or not at all, and an interrupted merge goes on.

An output ``m.nemo`` is made in ``.m.nemo.KEY.partial/`` beside it, where KEY tells one merge from another. The folder
is locked while a process works in it. It outlives a process that is killed; the same merge finds its finished tensors,
any other merge to the same output removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, OutputError
from ._journal import Journal
from ._pending import Layout, PendingFile, explained

_LOCK, _JOURNAL = "lock", "journal"
_KEY = r"[0-9a-f]{16}"


def check_output(output: Path, overwrite: bool) -> None:
    """Refuses an output that exists (unless it may be replaced) and one whose parent folder is missing.

    Raises:
        OutputError: with the remedy.
    """
    if (output.exists() or output.is_symlink()) and not overwrite:
        raise OutputError(f"{output}: exists already; pass overwrite=true to replace it, or choose another output")
    if not output.parent.is_dir():
        raise OutputError(f"{output}: the folder {output.parent} does not exist; create it first")


def key_of(record: Mapping[str, Any]) -> str:
    """The key of a merge's work folder: the same for the same record only."""
    text = json.dumps(record, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_whole(path: Path, content: bytes) -> None:
    """Writes a small file that appears at once."""
    with explained(path):
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        try:
            with open(fd, "wb") as file:
                os.fchmod(fd, 0o666 & ~_umask())
                file.write(content)
                file.flush()
                os.fsync(fd)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


class WorkFolder:
    """The folder in which one output is made.

    Args:
        output: the file or folder to be made.
        key: 16 hexadecimal digits that tell this merge from others; None for one that is never resumed.

    Raises:
        OutputError: another process is making this very output, or the folder cannot be made.
    """

    def __init__(self, output: Path, key: str | None = None) -> None:
        self.output = output
        self.files: dict[str, PendingFile] = {}
        self.path = output.with_name(f".{output.name}.{key or '0' * 16}.partial")
        self._journal: Journal | None = None
        self._remove_others()
        with explained(output):
            self._lock = self._make()
            if key is None:
                for path in self.path.iterdir():
                    if path.name != _LOCK:
                        path.unlink()
            else:
                self._journal = Journal(self.path / _JOURNAL)

    def add(self, name: str, layout: Layout, *, checksums: bool = False) -> PendingFile:
        """Starts a large file, or goes on with it."""
        file = PendingFile(self.path / name, layout, self._journal, shown=self.output, checksums=checksums)
        self.files[name] = file
        return file

    @property
    def finished(self) -> set[str]:
        """Tensors that an interrupted process finished."""
        return {name for file in self.files.values() for name in file.finished}

    def publish_file(self, name: str) -> None:
        """Makes one of the files the output, replacing what has its name now."""
        self.files[name].sync()
        self.files[name].close()
        with explained(self.output):
            os.replace(self.path / name, self.output)
            _sync_folder(self.output.parent)
        self._remove()

    def publish_folder(self, small_files: Mapping[str, bytes | Path]) -> None:
        """Makes the folder the output, with its large files and these small ones (contents, or paths to copy)."""
        for file in self.files.values():
            file.sync()
            file.close()
        with explained(self.output):
            for path in self.path.iterdir():
                if path.name not in (*self.files, _JOURNAL, _LOCK):  # of an output that stood here before a crash
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            for name, content in small_files.items():
                target = self.path / name
                with open(target, "wb") as written:
                    for chunk in _chunks(content) if isinstance(content, Path) else (content,):
                        written.write(chunk)
                    written.flush()
                    os.fsync(written.fileno())
            if self._journal is not None:
                self._journal.close()
                self._journal = None
                (self.path / _JOURNAL).unlink()
            (self.path / _LOCK).unlink()
            os.chmod(self.path, 0o777 & ~_umask())
            _sync_folder(self.path)
            put_in_place(self.path, self.output)
        self._remove()

    def pause(self, *, always: bool = False) -> bool:
        """Stops working and keeps finished tensors for the same merge; whether there is anything to keep.

        Args:
            always: keep the folder even if no tensor in it is finished.
        """
        if self._lock < 0:
            return False
        if not always and (self._journal is None or not self._journal.used):
            self.discard()
            return False
        for file in self.files.values():
            file.close()
        self._release()
        return True

    def discard(self) -> None:
        """Removes everything; harmless after publishing."""
        self._remove()

    def _remove(self) -> None:
        if self._lock < 0:
            return
        for file in self.files.values():
            file.close()
        shutil.rmtree(self.path, ignore_errors=True)
        self._release()

    def _release(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        os.close(self._lock)
        self._lock = -1

    def _make(self) -> int:
        while True:
            self.path.mkdir(exist_ok=True)
            try:
                lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:
                continue  # another process removed the folder just now
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(lock)
                raise OutputError(
                    f"{self.output}: another process is writing it now; wait for that one, or choose another output"
                ) from error
            except OSError:
                return lock  # a file system without locks
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), os.stat(self.path / _LOCK)):
                    return lock
            os.close(lock)

    def _remove_others(self) -> None:
        """Removes what killed processes left of other merges to this output."""
        pattern = re.compile(rf"\.{re.escape(self.output.name)}\.{_KEY}\.partial")
        with contextlib.suppress(OSError):
            for path in self.output.parent.iterdir():
                if path != self.path and pattern.fullmatch(path.name) and path.is_dir() and not _locked(path):
                    shutil.rmtree(path, ignore_errors=True)


def _locked(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # somebody else's
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def _chunks(path: Path) -> Iterator[bytes]:
    """The bytes of an input; a disk that fails to read it is no failure to write."""
    try:
        with open(path, "rb") as file:
            while chunk := file.read(16 << 20):
                yield chunk
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error


def put_in_place(new: Path, target: Path) -> None:
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
