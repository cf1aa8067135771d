"""``nemo-merge score``: error rates of recognisers, how sure they are, and what a merge kept."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._pairs import by_language, pairs

if TYPE_CHECKING:
    from ..reporting.scores import ScoreReport
    from ..scoring.evaluation import Evaluation, Options

_FORMAT_OF = {".json": "json", ".csv": "csv", ".md": "markdown"}


def _choice(*names: str) -> click.Choice[str]:
    return click.Choice(names)


@click.command("score", no_args_is_help=True)
@click.argument("reference", metavar="REF", type=click.Path(path_type=Path))
@click.argument("hypotheses", metavar="[[NAME=]HYP]...", nargs=-1)
@click.option("--metric", "metrics", multiple=True, help="wer, cer, mixed, pier, bleu or chrf; repeat it.  [wer, cer]")
@click.option("--profile", "profiles", multiple=True, metavar="[LANG=]NAME", help="Text profile.  [whisper_basic]")
@click.option(
    "--casing", multiple=True, metavar="[LANG=]WHAT", help="lower or keep; profiles words and pt_ep.  [lower]"
)
@click.option("--punctuation", multiple=True, metavar="[LANG=]WHAT", help="remove or keep; the same.  [remove]")
@click.option(
    "--spelling", type=_choice("ao90", "ao90_variants"), help="Also WER with Portuguese spellings made equal."
)
@click.option("--costs", type=_choice("levenshtein", "sclite"), default="levenshtein", help="Of edits.")
@click.option("--insertions", type=_choice("next", "none"), default="next", help="Whose word an insertion is in PIER.")
@click.option("--baseline", metavar="NAME", help="Compare every other system with this one: MAPSSWE, Holm.")
@click.option("--base", metavar="NAME", help="The base of a merge: what the other systems kept of it.")
@click.option("--expert", "experts", multiple=True, metavar="GROUP=NAME", help="Expert of a language, domain or set.")
@click.option("--out-of-domain", multiple=True, metavar="GROUP", help="Set or domain that no expert was trained on.")
@click.option("--language", metavar="TAG", help="Of utterances that do not say; BCP-47, such as pt-PT.")
@click.option("--utt2lang", type=click.Path(path_type=Path), help="Languages by utterance, as in Kaldi.")
@click.option("--utt2domain", type=click.Path(path_type=Path), help="Domains by utterance.")
@click.option("--utt2spk", type=click.Path(path_type=Path), help="Speakers by utterance.")
@click.option("--by-speaker", is_flag=True, help="Draw speakers, not utterances, for the intervals.")
@click.option("--replications", type=click.IntRange(0), default=2000, help="Draws for the intervals; 0 for none.")
@click.option("--missing", type=_choice("delete", "skip"), default="delete", help="References without a hypothesis.")
@click.option("--keep-empty", is_flag=True, help="Score empty references: all that is heard is inserted.")
@click.option("--strict", is_flag=True, help="Stop at input that cannot be used, instead of leaving it out.")
@click.option("--encoding", default="utf-8", help="Of the transcripts.")
@click.option("--input-format", help="json, csv, tsv, kaldi, trn or ctm, if file names do not tell.")
@click.option("--alignments", type=click.IntRange(0), default=0, metavar="N", help="Show the N worst utterances.")
@click.option("--format", "format", type=_choice("markdown", "json", "csv"), help="Of the report.  [markdown]")
@click.option("--output", "outputs", multiple=True, type=click.Path(path_type=Path), help="File; its suffix says how.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
def command(reference: Path, hypotheses: tuple[str, ...], **given: Any) -> None:
    """Score transcripts HYP against REF: one file each, or folders with one file per test set.

    \b
      nemo-merge score test.json tsvm=exp/tsvm/test.jsonl ties=exp/ties/test.jsonl --baseline ties
      nemo-merge score test.trn hyp.trn --costs sclite
      nemo-merge score exp/decode/base exp/decode/* --base base --expert news=news --output scores.json

    NeMo manifests and other JSON lines, CSV and TSV with a header, Kaldi text, trn and CTM are read. Without HYP, the
    pred_text of REF is scored. Rows that cannot be used are named on standard error and left out; a missing hypothesis
    counts as deleted. Rates in JSON are fractions.
    """
    from ..scoring.evaluation import evaluate
    from ..scoring.normalised import drop_empty
    from ..scoring.transcripts import Problems, ReadingOptions, read_rows

    if given["alignments"] and not given["outputs"] and given["format"] in ("json", "csv"):
        raise click.UsageError("--alignments would end up in the report; write that to a file with --output")
    formats = _output_formats(given["outputs"], given["format"], given["overwrite"])
    options = _options(given)
    systems = _systems(hypotheses)
    labels = {"language": given["utt2lang"], "domain": given["utt2domain"], "speaker": given["utt2spk"]}
    reading = ReadingOptions(
        encoding=given["encoding"],
        format=given["input_format"],
        missing=given["missing"],
        keep_empty=given["keep_empty"],
        language=given["language"],
        labels={name: path for name, path in labels.items() if path},
    )
    problems = Problems()
    rows = read_rows(reference, systems, problems, reading)
    if not given["keep_empty"]:
        rows = drop_empty(rows, options.text, problems)
    if given["strict"]:
        problems.stop_if_any()
    for line in problems.lines():
        click.echo(f"nemo-merge: warning: {line}", err=True)
    evaluation = evaluate(rows, options)
    inputs = {"references": str(reference), "hypotheses": {name: str(path) for name, path in systems.items()}}
    report = _report(evaluation, {**inputs, "text": str(options.text)}, problems.counts(), given)
    if not given["outputs"]:
        click.echo(report.render(given["format"] or "markdown"), nl=False)
    for path, format in zip(given["outputs"], formats, strict=True):
        _write(path, report.render(format))
        click.echo(str(path), err=True)
    if given["alignments"]:
        from ..reporting.alignments import worst_alignments
        from ._console import console

        out = console()
        for shown in worst_alignments(evaluation, given["alignments"]):
            out.print(shown, soft_wrap=True)


def _options(given: Mapping[str, Any]) -> Options:
    from ..scoring.evaluation import Options
    from ..scoring.normalised import TextOptions

    text = TextOptions(
        profile=by_language(given["profiles"], "--profile") or TextOptions.profile,
        casing=by_language(given["casing"], "--casing") or TextOptions.casing,
        punctuation=by_language(given["punctuation"], "--punctuation") or TextOptions.punctuation,
    )
    return Options(
        metrics=tuple(dict.fromkeys(given["metrics"])) or ("wer", "cer"),
        text=text,
        spelling=given["spelling"],
        costs=given["costs"],
        insertions=given["insertions"],
        by_speaker=given["by_speaker"],
        replications=given["replications"],
    )


def _report(
    evaluation: Evaluation, inputs: Mapping[str, Any], problems: Mapping[str, int], given: Mapping[str, Any]
) -> ScoreReport:
    from ..reporting.scores import ScoreReport
    from ..scoring.comparison import compare, kept, means

    baseline, base = given["baseline"], given["base"]
    experts = pairs(given["experts"], "--expert")
    if experts and not base:
        raise click.UsageError("--expert needs --base")
    merges = [name for name in evaluation.systems if name not in (base, *experts.values())]
    return ScoreReport(
        evaluation,
        inputs,
        problems,
        compare(evaluation, baseline) if baseline else (),
        baseline,
        {name: means(evaluation, name, given["out_of_domain"]) for name in evaluation.systems},
        {name: kept(evaluation, name, base, experts) for name in merges} if base else None,
    )


def _systems(hypotheses: Sequence[str]) -> dict[str, Path]:
    """Paths by name of the system."""
    from ..errors import ConfigError
    from ..scoring.transcripts import system_names

    # A name before an equals sign, unless that is part of a path that exists.
    cut = [(None, item) if Path(item).exists() else item.rpartition("=")[::2] for item in hypotheses]
    paths = [Path(path) for _, path in cut]
    short = iter(system_names([path for (name, _), path in zip(cut, paths, strict=True) if not name]))
    systems: dict[str, Path] = {}
    for (name, _), path in zip(cut, paths, strict=True):
        name = name or next(short)
        if name in systems:
            raise ConfigError(f"two systems are called {name!r}; name them: NAME=HYP")
        systems[name] = path
    return systems


def _output_formats(outputs: Sequence[Path], format: str | None, overwrite: bool) -> list[str]:
    """The format of every output; what cannot be written is found before anything is read."""
    from ..errors import OutputError

    formats = []
    for path in outputs:
        if path.exists() and not overwrite:
            raise OutputError(f"{path}: exists already; pass --overwrite")
        if not path.parent.is_dir():
            raise OutputError(f"{path}: there is no folder {path.parent}")
        known = format or _FORMAT_OF.get(path.suffix.lower())
        if known is None:
            raise click.UsageError(f"--output {path}: the suffix is none of {', '.join(_FORMAT_OF)}; pass --format")
        formats.append(known)
    return formats


def _write(path: Path, text: str) -> None:
    from ..errors import OutputError

    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error
