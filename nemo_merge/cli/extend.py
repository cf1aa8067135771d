"""``nemo-merge extend``: adds an expert to a merged model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import _extension


@click.command("extend", no_args_is_help=True)
@click.argument("merged", type=click.Path(path_type=Path))
@click.argument("expert", type=click.Path(path_type=Path))
@_extension.output
@click.option("--name", help="What the expert is called from now on; by default the name of its file.")
@click.option("--weight", type=float, default=1.0, show_default=True, help="Its weight; the others keep theirs.")
@_extension.change
@click.option(
    "--packs",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of packs of earlier experts; one of this expert is added.",
)
@_extension.packing
@click.option("--vocabulary", metavar="WORD", help="strict, base or union, where tokens differ.  [union]")
@_extension.work
def command(
    merged: Path,
    expert: Path,
    output: Path,
    name: str | None,
    weight: float,
    inputs: tuple[Path, ...],
    overwrite: bool,
    **others: Any,
) -> None:
    """Add EXPERT, a language or a domain, to the model MERGED.

    What is inside is read from MERGED's record. Where all earlier experts are found (or packs of them), they are merged
    again with the new one; where the method adds what it makes of each expert (soup, task_arithmetic, lors,
    breadcrumbs, star), the merged model is changed by the new one alone, which is the same.

    \b
      nemo-merge extend merged.nemo es.nemo -o with_es.nemo --packs packs
      nemo-merge forget with_es.nemo pt -o without_pt.nemo --packs packs
    """
    from ..merging import extend
    from ._memory import return_large_buffers

    return_large_buffers()
    given = _extension.given(**others)
    report = extend(merged, expert, output, name=name, weight=weight, inputs=inputs, overwrite=overwrite, **given)
    click.echo(str(report))
