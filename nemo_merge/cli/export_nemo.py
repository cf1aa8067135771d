"""``nemo-merge export-nemo``: NeMo manifests and the ``input_cfg`` of prepared corpora."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("export-nemo")
@click.argument("prepared", type=click.Path(path_type=Path, file_okay=False))
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path, file_okay=False))
@click.option("--split", "splits", multiple=True, help="Split to export; may be given again. All by default.")
@click.option("--corpus", "names", multiple=True, help="Only these corpora, by recipe or file name.")
@click.option("--domain", help="Only corpora of this domain.")
@click.option("--language", help="Only corpora with this language.")
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Weights are hours to this power: 1 in proportion, 0 all alike.",
)
@click.option("--cuts", is_flag=True, help="Entries are Lhotse cuts; no NeMo manifests are written.")
def command(
    prepared: Path,
    output: Path,
    splits: tuple[str, ...],
    names: tuple[str, ...],
    domain: str | None,
    language: str | None,
    temperature: float,
    cuts: bool,
) -> None:
    """Write NeMo manifests of the corpora in the folder PREPARED to OUT, and input_cfg_<split>.yaml that mixes them."""
    from ..corpora.nemo_export import export_nemo
    from ..corpora.prepared import find_prepared
    from ..errors import CorpusError

    chosen = [
        item
        for name in names or (None,)
        for item in find_prepared(prepared, corpus=name, domain=domain, language=language)
    ]
    if not chosen:
        raise CorpusError(f"{prepared}: holds no prepared corpus that fits; nemo-merge prepare CORPUS SRC {prepared}")
    for split in splits or dict.fromkeys(name for item in chosen for name in item.splits):
        click.echo(export_nemo(chosen, output, split, temperature=temperature, jsonl=not cuts))
