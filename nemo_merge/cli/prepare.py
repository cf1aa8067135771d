"""``nemo-merge prepare``: turns a corpus into Lhotse manifests and cuts that NeMo trains on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..corpora import Prepared

CONTEXT = {"help_option_names": ["-h", "--help"]}


@click.command("prepare", context_settings=CONTEXT)
@click.argument("corpus")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path, file_okay=False))
@click.argument("options", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("-j", "--num-jobs", type=click.IntRange(1), default=1, show_default=True, help="Threads that open audio.")
@click.option("--strict", is_flag=True, help="Stop at the first row that cannot be used instead of leaving it out.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(
    corpus: str, source: Path, output: Path, options: tuple[str, ...], num_jobs: int, strict: bool, quiet: bool
) -> None:
    """Prepare the corpus or format CORPUS from the folder SRC: manifests and cuts in OUT.

    Rows that cannot be used are named, left out and counted; OUT/*_problems_*.jsonl lists them all. Run again after an
    interruption to go on, and at any time to see that nothing changed. Options of a corpus: nemo-merge corpora CORPUS
    """
    run(corpus, source, output, options, num_jobs, strict, quiet)


def run(
    name: str, source: Path, output: Path, options: tuple[str, ...], num_jobs: int, strict: bool, quiet: bool
) -> None:
    """Prepares a corpus and prints what is there."""
    from ..corpora import find
    from ..corpora.prepared import open_prepared
    from ._options import read_options

    corpus = find(name)
    given = read_options(options, corpus.options, corpus.name)
    assert corpus.prepare is not None  # all that are registered have one
    with _progress(quiet) as progress:
        manifests = corpus.prepare(source, output, num_jobs, strict=strict, progress=progress, **given)
    item = open_prepared(manifests.summary)
    assert item is not None  # just written
    _summary(item)


def _summary(item: Prepared) -> None:
    from rich.table import Table
    from rich.text import Text

    from ._console import console

    out = console()
    table = Table("split", "recordings", "utterances", "hours", "left out", box=None, pad_edge=False)
    for split, counts in item.splits.items():
        skipped = ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in counts["skipped"].items())
        table.add_row(
            split, f"{counts['recordings']:,}", f"{counts['utterances']:,}", f"{counts['hours']:.2f}", skipped or "0"
        )
    out.print(Text(f"{item.stem}: {item.domain}, {', '.join(item.languages)}"))
    out.print(table)
    out.print(Text(f"cuts to train on: {item.folder / item.stem}_cuts_<split>.jsonl.gz"))


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int], None] | None]:
    """A line per split with the number of recordings; their total is not known before the end."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    out = Console(stderr=True)
    if quiet or not out.is_terminal:
        yield None
        return
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,} recordings"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=out) as bar:
        tasks: dict[str, Any] = {}

        def progress(split: str, done: int) -> None:
            if split not in tasks:
                for task in tasks.values():
                    bar.update(task, total=bar.tasks[task].completed)
                tasks[split] = bar.add_task(split, total=None)
            bar.update(tasks[split], completed=done)

        yield progress
