"""Stages 6 to 8: decode, score, report."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..reporting.results import Scores, write_results
from ..scoring import bootstrap_interval, holm, mapsswe
from ..scoring.error_rates import sum_counts, word_errors
from ..training.decode import DecodingJob, Hypothesis, read_hypotheses
from ..training.jobs import check_settings
from .data import cuts_path, notice, speech_sets
from .engine import Context, identity, seconds_of
from .markers import file_sha256
from .models import merged_path, model_path
from .workers import run_jobs

if TYPE_CHECKING:
    from ..reporting.experiment import ReportOptions

_NOT_CHANGING = ("batch_size", "batch_seconds", "device", "threads", "strict")  # transcripts do not depend on them


def decode(context: Context) -> None:
    """Stage 6: every model transcribes every test set."""
    sets = {name: cuts_path(context, name, "test") for name in context.config["decode"]["sets"]}
    transcribe_all(context, _models(context), sets)


def transcribe_all(
    context: Context,
    models: Mapping[str, Path],
    sets: Mapping[str, Path],
    only: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Transcribes every set, a cut manifest, with every model, unless that was done before.

    Args:
        context: see :func:`transcribe_each`.
        models: checkpoints by name.
        sets: cut manifests by name.
        only: names of the sets for the models that do not transcribe all.
    """
    wanted = {name: (only or {}).get(name, sets) for name in models}
    transcribe_each(
        context, {name: (path, {item: sets[item] for item in wanted[name]}) for name, path in models.items()}
    )


def transcribe_each(
    context: Context,
    wanted: Mapping[str, tuple[Path, Mapping[str, Path]]],
    output: str = "decode",
    cache: Path | None = None,
) -> None:
    """Transcribes sets, cut manifests, with every model, unless that was done before.

    Args:
        context: its ``decode`` has settings of a ``DecodingJob``.
        wanted: a model and the sets for it, by the model's name.
        output: folder of experiments for the transcripts, ``<output>/<model>/<set>.jsonl``.
        cache: hidden layers for models that stand on fused encoders.
    """
    known = functools.cache(identity)
    settings = decode_settings(context.config)
    changing = {key: value for key, value in settings.items() if key not in _NOT_CHANGING}
    jobs, marks = {}, {}
    for name, (path, sets) in wanted.items():
        folder, job = context.expdir / output / name, f"{output}-{name}"
        files = [folder / f"{item}.jsonl" for item in sets]
        mark = {
            "model": known(path),
            "sets": {item: known(cuts) for item, cuts in sets.items()},
            "settings": changing,
        }
        if context.is_fresh(job, files, **mark):
            context.say(f"{name}: decoded before")
        else:
            if context.force:
                shutil.rmtree(folder, ignore_errors=True)
            jobs[job] = DecodingJob({name: path}, sets, folder.parent, overwrite=True, cache=cache, **settings)
            marks[job] = mark
    for job in run_jobs(jobs, context.expdir / "jobs", context.jobs, context.say, together=True):
        context.mark_fresh(job, **marks[job])


def decode_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """How models transcribe: what ``decode`` says beside its sets.

    Raises:
        ConfigError: a setting does not exist.
    """
    settings = {key: value for key, value in config["decode"].items() if key != "sets"}
    check_settings(DecodingJob, settings, "decode", ("models", "sets", "output", "overwrite", "progress", "cache"))
    return settings


def heard_in(context: Context, name: str, file: Path) -> list[Hypothesis]:
    """What a model recognised in a set, through the text profile that stage 2 puts the set's transcripts through."""
    rewrite = speech_sets(context)[name].rewrite
    return [replace(item, pred_text=rewrite(item.pred_text)) for item in read_hypotheses(file)]


def score(context: Context) -> None:
    """Stage 7: word error rates with confidence intervals, and every merge against the baseline."""
    sets = list(context.config["decode"]["sets"])
    domains = list(context.config["domains"])
    heard = {
        model: {name: heard_in(context, name, context.expdir / "decode" / model / f"{name}.jsonl") for name in sets}
        for model in _models(context)
    }
    errors = {
        model: {
            name: word_errors([h.text or "" for h in found], [h.pred_text for h in found])
            for name, found in by_set.items()
        }
        for model, by_set in heard.items()
    }
    table: dict[str, Any] = {"sets": {}, "means": {}, "against": {}}
    baseline = context.config["score"]["baseline"]
    for model, by_set in errors.items():
        table["sets"][model] = {
            name: {**asdict(sum_counts(counts)), "interval": bootstrap_interval([counts])}
            for name, counts in by_set.items()
        }
        mine = [by_set[name] for name in domains]
        table["means"][model] = bootstrap_interval(mine)
        if model != baseline and model not in (*domains, "base"):
            table["against"][model] = bootstrap_interval(mine, [errors[baseline][name] for name in domains])
        context.say(f"{model}: mean WER over the domains {100 * table['means'][model].value:.1f} %")
    at_home = {model: [item for name in domains for item in by_set[name]] for model, by_set in heard.items()}
    table["significance"] = _significance({name: at_home[name] for name in table["against"]}, at_home[baseline])
    (context.expdir / "scores.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def _significance(merges: dict[str, list[Hypothesis]], baseline: list[Hypothesis]) -> dict[str, dict[str, Any]]:
    """MAPSSWE of every merge against the baseline over all domains, corrected for the number of merges."""
    references, theirs = [item.text or "" for item in baseline], [item.pred_text for item in baseline]
    tests = {name: mapsswe(references, [item.pred_text for item in mine], theirs) for name, mine in merges.items()}
    corrected = holm([test.p_value for test in tests.values()])
    return {name: {**asdict(test), "p_holm": p} for (name, test), p in zip(tests.items(), corrected, strict=True)}


def write_report(context: Context) -> None:
    """Stage 8: ``RESULTS.md``, a picture, and a page that holds everything."""
    from ..reporting.experiment import write_page

    found = speech_sets(context)
    scores = Scores.read(context.expdir / "scores.json")
    merge_seconds = json.loads((context.expdir / "merged" / "cpu_seconds.json").read_text(encoding="utf-8"))
    made = write_results(
        context.expdir,
        title=context.config["title"],
        notice=notice(context),
        command=context.config["command"],
        scores=scores,
        domains={name: found[name].title for name in context.config["domains"]},
        others=_other_sets(context),
        merges={name: dict(values) for name, values in context.config["merge"]["methods"].items()},
        baseline=context.config["score"]["baseline"],
        merge_seconds=merge_seconds,
        stage_seconds=seconds_of(context),
        models={name: file_sha256(path) for name, path in _models(context).items() if path.is_file()},
    )
    page = context.expdir / "report.html"
    write_page(context.expdir, page, report_options(context), overwrite=True)
    for path in [*made, page]:
        context.say(f"wrote {path}")


def report_options(context: Context, *, speech: bool = True) -> ReportOptions:
    """What goes into the page; without examples and audio if it is for others."""
    from ..reporting.experiment import ReportOptions

    found = speech_sets(context)
    options = ReportOptions(
        title=context.config["title"],
        notice=notice(context),
        base="base",
        experts={name: name for name in context.config["domains"]},
        groups={title.capitalize(): list(sets) for title, sets in _other_sets(context).items()},
        baseline=context.config["score"]["baseline"],
        command=context.config["command"],
        rewrite={name: found[name].rewrite for name in context.config["decode"]["sets"]},
    )
    return options if speech else replace(options, worst=0, audio_limit=0)


def _other_sets(context: Context) -> dict[str, dict[str, str]]:
    """Titles of the test sets that no expert was trained on, by what they are."""
    found = speech_sets(context)
    groups: dict[str, dict[str, str]] = {}
    for name in context.config["decode"]["sets"]:
        if name not in context.config["domains"]:
            groups.setdefault(found[name].group, {})[name] = found[name].title
    return groups


def _models(context: Context) -> dict[str, Path]:
    """All models of the experiment by name: base, experts, merges."""
    trained = {name: model_path(context, name) for name in ("base", *context.config["domains"])}
    return {**trained, **{name: merged_path(context, name) for name in context.config["merge"]["methods"]}}


def hypothesis_files(context: Context) -> list[Path]:
    """What stage 6 leaves."""
    sets = context.config["decode"]["sets"]
    return [context.expdir / "decode" / model / f"{name}.jsonl" for model in _models(context) for name in sets]


def score_files(context: Context) -> list[Path]:
    """What stage 7 leaves."""
    return [context.expdir / "scores.json"]


def report_files(context: Context) -> list[Path]:
    """What stage 8 leaves."""
    return [context.expdir / name for name in ("RESULTS.md", "wer.png", "report.html")]
