"""Runs commands as processes of their own and measures what they use."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

MEMORY_LIMIT = 14 << 30
"""Anonymous memory, in bytes, at which a command is killed, so that it fails instead of the machine."""


class Run(NamedTuple):
    """What one run of a command took: CPU seconds (user and system), wall seconds, peak anonymous bytes."""

    cpu: float
    wall: float
    memory: int


class CommandError(Exception):
    """A command failed; the message is the end of what it said."""


def measure(
    command: Sequence[str],
    warm: Sequence[Path] = (),
    limit: int = MEMORY_LIMIT,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Run:
    """Runs a command, with one thread per library.

    Anonymous memory is what a process really needs; mapped files are page cache, which the system takes back at will.

    Args:
        command: what to run.
        warm: files to read first, so that all runs find them in the page cache.
        limit: anonymous memory in bytes at which the command is killed.
        variables: further environment variables.

    Raises:
        CommandError: the exit status is not 0.
    """
    for path in warm:
        with open(path, "rb", buffering=0) as file:
            buffer = bytearray(1 << 20)
            while file.readinto(buffer):
                pass
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.update(variables)
    with tempfile.TemporaryFile() as said:
        started = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment)
        peak, done = [0], threading.Event()
        watcher = threading.Thread(target=_watch, args=(process.pid, peak, done, limit))
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        done.set()
        watcher.join()
        if process.returncode:
            said.seek(0)
            if peak[0] > limit:
                raise CommandError(f"killed at {limit >> 30} GiB of anonymous memory")
            raise CommandError(said.read().decode(errors="replace")[-1500:] or f"exit status {process.returncode}")
    return Run(usage.ru_utime + usage.ru_stime, wall, peak[0])


def _watch(pid: int, peak: list[int], done: threading.Event, limit: int) -> None:
    # A limit set with prlimit would count mapped inputs too: safetensors maps them writable, though private.
    while not done.wait(0.01):
        peak[0] = max(peak[0], _anonymous(pid))
        if peak[0] > limit:
            os.kill(pid, signal.SIGKILL)
            return


def _anonymous(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)


def machine() -> str:
    """Processor, cores, memory and kernel in one line."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}"
