"""What every ``RESULTS.md`` has: title, notice and command at its beginning, what it was made with at its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from .environment import environment
from .markdown import table


def write_document(
    path: Path, title: str, notice: str, command: str, parts: Iterable[str], stage_seconds: Mapping[str, float]
) -> Path:
    """Writes a result in Markdown and returns its path.

    Args:
        path: file to write.
        title: heading.
        notice: what every reader of the figures must know, if anything.
        command: what made them.
        parts: what is between; empty ones are left out.
        stage_seconds: wall-clock seconds of every stage.
    """
    written = [
        f"# {title}",
        notice,
        f"Made by `{command}`.",
        *parts,
        "## Environment",
        table(["", ""], [[key, value] for key, value in environment().items()]),
        "Seconds by stage: " + ", ".join(f"{name} {value:.0f}" for name, value in stage_seconds.items()) + ".",
    ]
    path.write_text("\n\n".join(filter(None, written)) + "\n", encoding="utf-8")
    return path
