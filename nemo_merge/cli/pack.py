"""``nemo-merge pack``: stores experts as low-rank and sparse changes of their base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import _extension


@click.command("pack", no_args_is_help=True)
@click.argument("experts", nargs=-1, type=click.Path(path_type=Path))
@click.option("--merged", type=click.Path(path_type=Path), help="Pack all experts of this merged model.")
@click.option(
    "--inputs",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder in which the experts of MERGED are looked for; may be given several times.",
)
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
    inputs: tuple[Path, ...],
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
    from ..checkpoints.pack import PACK_SUFFIX
    from ..merging import pack, pack_experts
    from ..merging.inputs import name_of
    from ._memory import return_large_buffers

    return_large_buffers()
    work: dict[str, Any] = {"overwrite": overwrite, "workers": workers, **_extension.given(**options)}
    if merged is not None:
        for report in pack_experts(merged, output, base=base, inputs=inputs, **work):
            click.echo(str(report))
        return
    assert base is not None
    single = output.suffix == ".safetensors"
    if single and len(experts) > 1:
        raise click.UsageError(f"-o {output}: a file holds one pack; give a folder")
    targets = [output if single else output / ((name or name_of(expert)) + PACK_SUFFIX) for expert in experts]
    if len(set(targets)) < len(targets):
        raise click.UsageError("EXPERTS of one name would get one pack; pack them one by one, with --name")
    if not single:
        output.mkdir(parents=True, exist_ok=True)
    for expert, target in zip(experts, targets, strict=True):
        click.echo(str(pack(expert, base, target, name=name, **work)))
