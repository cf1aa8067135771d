"""``nemo-merge reproduce``: repeats the merge that made a checkpoint, and compares."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command("reproduce")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--inputs",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder in which to look for inputs that are not where they were; may be given several times.",
)
@click.option("--workers", type=int, help="Threads; the number of cores by default.")
def command(file: Path, inputs: tuple[Path, ...], workers: int | None) -> None:
    """Repeat the merge that made the checkpoint FILE, as its record says, and compare the bytes.

    The inputs must be there and have the SHA-256 that the record names. Exit code 0 if every tensor is the same, 1 if
    one is not; FILE itself is not touched.
    """
    from ..merging.reproduce import reproduce
    from ._memory import return_large_buffers

    return_large_buffers()
    result = reproduce(file, inputs=inputs, workers=workers)
    click.echo(str(result))
    if not result.same:
        sys.exit(1)
