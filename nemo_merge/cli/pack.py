"""``nemo-merge pack``: stores experts as low-rank and sparse changes of their base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import _extension


@click.command("pack", no_args_is_help=True)
@click.argument("experts", nargs=-1, type=click.Path(path_type=Path))
@click.option("--merged", type=click.Path(path_type=Path), help="Pack all experts of this merged model.")
@click.option("--base", type=click.Path(path_type=Path), help="The model that the experts were fine-tuned from.")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for NAME.pack.safetensors, or for a single expert such a file.",
)
@click.option("--name", help="What a single expert is called; by default the name of its file.")
@_extension.packing
@_extension.work
def command(
    experts: tuple[Path, ...],
    merged: Path | None,
    base: Path | None,
    output: Path,
    name: str | None,
    overwrite: bool,
    workers: int | None,
    **options: Any,
) -> None:
    """Pack EXPERTS: low rank plus the largest other entries of what they change, in a fraction of their size.

    A pack is opened wherever an expert is, with the same base beside it.

    \b
      nemo-merge pack pt.nemo es.nemo --base base.nemo -o packs
      nemo-merge pack --merged merged.nemo -o packs --keep 0.1
      nemo-merge merge method=lors base=base.nemo 'experts=[packs/pt.pack.safetensors,it.nemo]' output=m.nemo
    """
    if bool(experts) == (merged is not None):
        raise click.UsageError("give either EXPERTS or --merged MERGED")
    if experts and base is None:
        raise click.UsageError("--base is missing: a pack holds what an expert changes of it")
    if name is not None and len(experts) != 1:
        raise click.UsageError("--name is for a single expert")
    from ..merging.packs import pack_all
    from ._memory import return_large_buffers

    return_large_buffers()
    given = _extension.given(**options)
    for report in pack_all(experts, merged, base, output, name=name, overwrite=overwrite, workers=workers, **given):
        click.echo(str(report))
