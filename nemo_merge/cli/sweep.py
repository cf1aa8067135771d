"""``nemo-merge sweep``: merges once for every combination of values, doing what they share once."""

from __future__ import annotations

from typing import Any

import click


@click.command("sweep", context_settings={"ignore_unknown_options": True}, no_args_is_help=True)
@click.argument("arguments", nargs=-1, metavar="[CONFIG.yaml] [KEY=VALUE]...")
def command(arguments: tuple[str, ...]) -> None:
    """Merge once for every combination of values of the method's parameters.

    Takes the settings of 'nemo-merge merge'; parameters with several values make the grid, and output is a folder:

    \b
      nemo-merge sweep method=boosted_tsvm method.beta=0.1,0.3 method.scale=0.8,1.0 \\
          base=base.nemo 'experts=[a.nemo,b.nemo]' output=sweep

    In a YAML file the grid is a mapping, grid: {beta: [0.1, 0.3]}. What the values share, such as the singular value
    decompositions for scale and beta, is computed once.
    """
    from ._memory import return_large_buffers
    from .settings import compose

    return_large_buffers()

    grid: dict[str, list[Any]] = {}
    settings, method = compose(arguments, grid)
    if not settings.output:
        raise click.UsageError("output=FOLDER is missing")
    if not settings.experts:
        raise click.UsageError("experts=[PATH,PATH] is missing")
    if settings.as_adapter is not None:
        raise click.UsageError("as_adapter is for nemo-merge merge; a sweep writes models")
    from dataclasses import fields

    from ..merging import sweep
    from ..merging.ranks import ranks_of_torchrun

    given = {
        item.name: getattr(method, item.name)
        for item in fields(method)
        if item.name not in grid and getattr(method, item.name) != item.default
    }
    with ranks_of_torchrun(settings.device) as ranks:
        reports = sweep(
            settings.base,
            settings.experts,
            method.name,
            grid=grid,
            output=settings.output,
            ranks=ranks,
            **settings.merge_options(),
            **given,
        )
        if not ranks.first:
            return
    for report in reports:
        click.echo(str(report.output))
    click.echo(f"{len(reports)} merges in {reports[0].seconds:.1f} s")
