"""``nemo-merge compare-upstreams``: which encoders, and which pairs of them, are worth fusing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from ._background import run_logged


def _layers(ctx: click.Context, param: click.Parameter, given: str | None) -> int | list[int] | None:
    """A number of layers, or the layers themselves, which have commas between them."""
    if given is None:
        return None
    numbers = [item.strip() for item in given.removesuffix(",").split(",")]
    if not all(item.isdecimal() for item in numbers) or given == "0":
        raise click.BadParameter(f"{given!r} is neither a number of layers, 7, nor layers by number: 0,4,8")
    return [int(item) for item in numbers] if "," in given else int(given)


@click.command("compare-upstreams", no_args_is_help=True)
@click.argument("upstreams", metavar="UPSTREAM...", nargs=-1, required=True)
@click.option("--cuts", type=click.Path(path_type=Path), required=True, help="Lhotse cuts with labels.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the report.")
@click.option(
    "--label",
    default="language",
    show_default=True,
    help="What probes tell apart: a field of the supervisions, such as speaker, or a custom field, such as domain.",
)
@click.option(
    "--layers",
    callback=_layers,
    metavar="N|N,N...",
    help="So many hidden layers of each encoder, spread evenly, or these (one: 8,).  [all]",
)
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True, help="Audio to hear."
)
@click.option("--frames", type=click.IntRange(4), default=4096, show_default=True, help="About so many, for CKA.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all that is random.")
@click.option("--threads", type=click.IntRange(1), help="Of the processor.  [all]")
@click.option("--overwrite", is_flag=True, help="Replace an earlier report.")
def command(upstreams: tuple[str, ...], threads: int | None, **given: Any) -> None:
    """Score encoders, and pairs of them, on a little audio, before anything is trained.

    An UPSTREAM is a NeMo model (of one with fused encoders, all these), the YAML file of a merge, or a folder or
    OWNER/NAME of a Hugging Face encoder. Similarity of layers (CKA) and probes go to choice.json, choice.md and
    choice.png:

    \b
      nemo-merge compare-upstreams parakeet.nemo microsoft/wavlm-base-plus openai/whisper-small \\
        --cuts dev.jsonl.gz --label speaker --layers 7 -o choice
    """
    from ..fusion.choice_job import FILES, ComparisonJob

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    job = ComparisonJob(upstreams=upstreams, threads=threads or cpus, **given)
    job.check()
    run_logged(job, "the comparison", click.echo)
    click.echo("\n" + "\n".join(str(given["output"] / name) for name in FILES))
