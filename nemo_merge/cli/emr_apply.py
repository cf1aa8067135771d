"""``nemo-merge emr-apply``: makes the model of one domain from what a merge by emr left."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("emr-apply")
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--base", required=True, help="The base of the merge.")
@click.option("--expert", required=True, help="Number of the expert, from 0, or its file name without suffix.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="The checkpoint to write.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
def command(package: Path, base: str, expert: str, output: Path, overwrite: bool) -> None:
    """Make the model of one domain from PACKAGE, the OUTPUT.emr.safetensors of a merge with method=emr."""
    from ..merging import apply_emr

    click.echo(str(apply_emr(package, base, expert, output, overwrite=overwrite)))
