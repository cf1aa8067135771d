"""Where tables go: as wide as the terminal, and unwrapped in a file or pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """A console for results on standard output."""
    from rich.console import Console

    probe = Console()
    return probe if probe.is_terminal else Console(width=240, soft_wrap=False)
