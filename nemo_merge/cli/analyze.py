"""``nemo-merge analyze``: shows why a merge works or not, from weights alone."""

from __future__ import annotations

import click


@click.command("analyze", context_settings={"ignore_unknown_options": True}, no_args_is_help=True)
@click.argument("arguments", nargs=-1, metavar="[CONFIG.yaml] [KEY=VALUE]...")
def command(arguments: tuple[str, ...]) -> None:
    """Measure how experts differ from their base and from each other.

    Norms of the task vectors, angles, spectra, sign conflicts and the interference of singular subspaces, by tensor,
    module and depth, with findings in plain language:

    \b
      nemo-merge analyze base=base.nemo 'experts=[a.nemo,b.nemo]' output=analysis

    \b
    base=PATH         the model that the experts were fine-tuned from
    experts=[A,B]     the experts: .nemo files or Hugging Face folders
    output=FOLDER     the report; it appears whole or not at all
    overwrite=true    replace an earlier analysis                        [false]
    top=N             tensors in the tables of the largest changes       [20]
    rank=X            share of singular triplets that STI looks at       [one over the number of experts]
    pictures=false    leave the pictures out                             [true]
    workers=N         threads                                            [number of cores]
    """
    from ._memory import return_large_buffers
    from .settings import AnalyzeSettings, compose_plain

    return_large_buffers()

    settings = compose_plain(arguments, AnalyzeSettings)
    if not settings.output:
        raise click.UsageError("output=FOLDER is missing")
    if not settings.experts:
        raise click.UsageError("experts=[PATH,PATH] is missing")
    from rich.table import Table
    from rich.text import Text

    from ..reporting.analysis import analyze
    from ._console import console

    report = analyze(
        settings.base,  # type: ignore[arg-type]  # a base of None has a message of its own
        settings.experts,
        output=settings.output,
        overwrite=settings.overwrite,
        top=settings.top,
        rank=settings.rank,
        pictures=settings.pictures,
        workers=settings.workers,
    )
    out = console()
    header, rows = report.experts
    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, row))
    out.print(table)
    for finding in report.findings:
        out.print(Text(f"{finding.level}: {finding.text}"))
    out.print(Text(f"{report.output}: analysed in {report.seconds:.1f} s; see README.md there"))
