"""``nemo-merge report``: one page about an experiment that needs no other file and no network."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from ._pairs import by_language, pairs


@click.command("report", no_args_is_help=True)
@click.argument("folder", metavar="EXP", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="The page.  [EXP/report.html]")
@click.option("--overwrite", is_flag=True, help="Replace the page of an earlier report.")
@click.option("--title", help="Heading of the page.  [end of EXP's path]")
@click.option("--notice", default="", help="What every reader of the figures must know.")
@click.option("--reference", type=click.Path(path_type=Path), help="File or folder of what was said.  [in EXP]")
@click.option("--base", metavar="NAME", help="System that the experts were fine-tuned from.  [base]")
@click.option("--expert", "experts", multiple=True, metavar="SET=NAME", help="Expert of a test set.  [the same name]")
@click.option("--group", "groups", multiple=True, metavar="NAME=SET,SET", help="Test sets without an expert.")
@click.option("--baseline", metavar="NAME", help="System to compare with.  [that of scores.json, else the base]")
@click.option("--metric", type=click.Choice(["wer", "cer", "mixed"]), default="wer", help="Error rate.  [wer]")
@click.option("--profile", "profiles", multiple=True, metavar="[LANG=]NAME", help="Text profile.  [as scored]")
@click.option("--replications", type=click.IntRange(1), default=2000, help="Draws for the intervals.  [2000]")
@click.option("--worst", type=click.IntRange(0), default=12, metavar="N", help="Utterances to show.  [12]")
@click.option("--worst-of", metavar="NAME", help="System that they are of.  [the best merge]")
@click.option("--audio", multiple=True, type=click.Path(path_type=Path), help="Manifest, cuts or folder with audio.")
@click.option("--audio-limit", type=click.FloatRange(0, 1000), default=8, metavar="MB", help="Audio in the page.  [8]")
@click.option("--spectra/--no-spectra", default=None, help="Measure task vectors.  [if the base has at most 256 MB]")
def command(folder: Path, output: Path | None, overwrite: bool, **given: Any) -> None:
    """Make one HTML page of an experiment: error rates, what was kept, worst utterances with audio, provenance.

    EXP is what a recipe leaves (decode/, scores.json, merged/, models/), or a folder of hypotheses as nemo-merge score
    reads them, with one folder per system and one file per test set:

    \b
      nemo-merge report recipes/ep_mini/exp
      nemo-merge report hyps --reference test --baseline ties --audio test_manifest.json

    The page has no links to anything else: it can be sent, archived and opened offline.
    """
    from ..reporting.experiment import ReportOptions, write_page
    from ..scoring.normalised import TextOptions

    profiles = by_language(given.pop("profiles"), "--profile")
    limit = given.pop("audio_limit")
    options = ReportOptions(
        **{
            **given,
            "experts": pairs(given["experts"], "--expert"),
            "groups": {name: sets.split(",") for name, sets in pairs(given["groups"], "--group").items()},
        },
        text=TextOptions(profiles) if profiles else None,
        audio_limit=round(1e6 * limit),
        command=shlex.join(["nemo-merge", *sys.argv[1:]]),
    )
    output = output or folder / "report.html"
    page = write_page(folder, output, options, overwrite=overwrite)
    for kind, count in page.problems.items():
        click.echo(f"nemo-merge: warning: {kind}: {count}", err=True)
    with_audio = sum(bool(example.clip.address) for example in page.examples)
    click.echo(
        f"{output}: {len(page.systems)} systems, {len(page.experiment.sets)} test sets, {len(page.examples)} utterances"
        f" ({with_audio} with audio), {output.stat().st_size / 1e6:.1f} MB"
    )
