"""Progress bars for work that goes through all tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int], None]
"""Called with the number of bytes that were finished."""


@contextmanager
def bar(description: str, total: int, show: bool | None) -> Iterator[Progress | None]:
    """A progress bar in bytes with an estimate of the time left.

    Args:
        description: what stands before it.
        total: bytes in all.
        show: show it; None for only on a terminal.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if show is False or (show is None and not console.is_terminal):
        yield None
        return
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console) as shown:
        task = shown.add_task(description, total=total)
        yield lambda count: shown.advance(task, count)
