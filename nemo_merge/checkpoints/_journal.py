"""Notes of finished tensors, kept beside a file in the making so that a later process can go on."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path


class Journal:
    """A text file of one line per finished tensor; a line that a crash cut short counts for nothing.

    Lines hold the file, the sum of the tensor's bytes (see :func:`~nemo_merge.checkpoints._pending.byte_sum`) and the
    tensor's name, which comes last because it may hold anything but a newline.

    Attributes:
        used: whether it holds anything.
    """

    def __init__(self, path: Path) -> None:
        self._notes: dict[str, dict[str, int]] = {}
        self._lock = threading.Lock()
        self.used = False
        with contextlib.suppress(FileNotFoundError):
            text = path.read_text(encoding="utf-8", errors="replace")
            complete = text[: text.rfind("\n") + 1]
            for line in complete.splitlines():
                with contextlib.suppress(ValueError):
                    file, total, name = line.split("\t", 2)
                    self._notes.setdefault(file, {})[name] = int(total, 16)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        if os.fstat(self._fd).st_size:
            self.used = True
            os.write(self._fd, b"\n")  # ends a line that was cut short

    def of(self, file: str) -> dict[str, int]:
        """The tensors of a file that are noted, with their sums."""
        return self._notes.get(file, {})

    def note(self, file: str, name: str, total: int) -> None:
        """Adds a tensor."""
        if "\n" in name or "\t" in file:
            return  # it will be computed again; no model has such names
        with self._lock:
            self.used = True
            os.write(self._fd, f"{file}\t{total:x}\t{name}\n".encode())

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)
