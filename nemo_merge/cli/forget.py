"""``nemo-merge forget``: takes an expert out of a merged model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import _extension


@click.command("forget", no_args_is_help=True)
@click.argument("merged", type=click.Path(path_type=Path))
@click.argument("name")
@_extension.output
@_extension.change
@click.option("--packs", type=click.Path(path_type=Path, file_okay=False), help="Folder of packs of the experts.")
@_extension.work
def command(merged: Path, name: str, output: Path, inputs: tuple[Path, ...], overwrite: bool, **others: Any) -> None:
    """Take the expert NAME out of the model MERGED.

    The other experts are merged again where they are found; else, where the method adds, NAME's share is taken away,
    for which NAME's checkpoint or pack has to be there.
    """
    from ..merging import forget
    from ._memory import return_large_buffers

    return_large_buffers()
    given = _extension.given(**others)
    click.echo(str(forget(merged, name, output, inputs=inputs, overwrite=overwrite, **given)))
