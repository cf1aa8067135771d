"""What a result was made with."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import time
from collections import Counter
from pathlib import Path

from .. import __version__

_PACKAGES = (
    "torch",
    "nemo_toolkit",
    "lightning",
    "transformers",
    "lhotse",
    "rapidfuzz",
    "jiwer",
    "sacrebleu",
    "numpy",
    "espeakng-loader",
)


def environment() -> dict[str, str]:
    """Date, versions, processor and commit, as rows of a table."""
    rows = {
        "date": time.strftime("%Y-%m-%d"),
        "nemo_merge": f"{__version__} ({_commit()})",
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            rows[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    rows["processor"] = _processor()
    if cards := _gpus():
        rows["GPU"] = cards
    return rows


def _commit() -> str:
    """The commit of the checkout this package is in, with a mark if files were changed since."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "no git checkout"
    return found.stdout.strip()


def _gpus() -> str:
    """Models of the GPUs of this machine, with their number; empty without any."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return ", ".join(f"{count} x {name}" for name, count in Counter(found.stdout.split("\n")).items() if name.strip())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()
