"""``nemo-merge download``: fetches a corpus that can be had without a contract."""

from __future__ import annotations

import inspect
from pathlib import Path

import click


@click.command("download")
@click.argument("corpus")
@click.argument("target", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.argument("options", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--force-download", is_flag=True, help="Fetch again what is there already.")
def command(corpus: str, target: Path, options: tuple[str, ...], force_download: bool) -> None:
    """Fetch the corpus CORPUS into the folder DIR, or say how it can be had."""
    run(corpus, target, options, force_download)


def run(name: str, target: Path, options: tuple[str, ...], force_download: bool) -> None:
    """Downloads a corpus."""
    from ..corpora import find
    from ..corpora.registry import ACCESS
    from ..errors import ConfigError
    from ._options import read_options

    corpus = find(name)
    if corpus.download is None:
        raise ConfigError(
            f"{corpus.name} cannot be fetched by a command; it is {ACCESS[corpus.access]}: {corpus.source}. "
            f"Then: nemo-merge prepare {corpus.name} SRC OUT"
        )
    parameters = list(inspect.signature(corpus.download).parameters.values())[2:]
    given = read_options(options, {item.name: item.default for item in parameters}, f"the download of {corpus.name}")
    click.echo(f"{corpus.title}: licence {corpus.licence}")
    folder = corpus.download(target, force_download, **given)
    click.echo(f"in {folder}; now: nemo-merge prepare {corpus.name} {folder} OUT")
