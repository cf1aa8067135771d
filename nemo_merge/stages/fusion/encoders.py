"""Stages 2 and 3: cuts of every task; the encoders are trained, compared, and run once over all speech."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ...errors import ConfigError, did_you_mean
from ...fusion.choice_job import FILES, ComparisonJob
from ...training.classifier import ClassifierJob
from ...training.ctc import TrainingJob
from ...training.feature_cache import FeatureCacheJob
from ...training.jobs import Job, check_settings
from .. import data
from ..data import cuts_path
from ..engine import Context, identity
from ..models import model_path
from ..workers import run_jobs
from .systems import Task, is_trained_here, source_files, tasks, training_settings, upstream_entry

_SPLITS = ("train", "test")


def cuts(context: Context) -> None:
    """Stage 2: cuts of every set, and for classifiers cuts of all their sets, whose text is the label."""
    from lhotse import CutSet
    from lhotse.utils import fastcopy

    from ...training.cut_labels import label_of

    found = tasks(context.config)
    _check_splits(context)
    data.cuts(context)
    for task in found:
        if task.label is None:
            continue
        for split in _SPLITS:
            labelled = []
            for name in task.sets:
                for cut in CutSet.from_file(cuts_path(context, name, split)):
                    said = fastcopy(cut.supervisions[0], text=str(label_of(cut, task.label)))
                    labelled.append(fastcopy(cut, supervisions=[said]))
            CutSet.from_cuts(labelled).to_file(task.cuts(context, split)[task.name])


def train(context: Context) -> None:
    """Stage 3: encoders that are not given are trained; then all are compared, and run over the speech of the tasks."""
    config = context.config
    _check_splits(context)
    wanted = {name: upstream_entry(context, name) for name in config["upstreams"]}
    _check_rates(context, wanted)
    jobs = encoder_jobs(context)
    _run(context, {name: (job, [model_path(context, name)]) for name, job in jobs.items()})
    heard = sorted({path for task in tasks(config) for split in _SPLITS for path in _speech(context, task, split)})
    kept = FeatureCacheJob(list(wanted.values()), heard, cache_folder(context), int(config["model"]["sample_rate"]))
    jobs_on_all: dict[str, tuple[Job, list[Path]]] = {"features": (kept, [cache_folder(context) / "cache.json"])}
    if (job := comparison_job(context)) is not None:
        jobs_on_all["compare"] = (job, [Path(job.output) / name for name in FILES])
    _run(context, jobs_on_all, models=wanted)


def _check_splits(context: Context) -> None:
    """Refuses sets that have no speech for what they are used for, once it is prepared."""
    entries = [entry for entry in context.config["upstreams"].values() if is_trained_here(entry)]
    needed: dict[str, tuple[str, ...]] = {name: ("train",) for entry in entries for name in entry["data"]}
    data.require_splits(context, needed | {name: _SPLITS for task in tasks(context.config) for name in task.sets})


def _check_rates(context: Context, wanted: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses given encoders that hear audio of another rate than the models, before others are trained."""
    from ...fusion.description import sample_rate
    from ...fusion.sources import describe

    rate = int(context.config["model"]["sample_rate"])
    for name, entry in context.config["upstreams"].items():
        if not is_trained_here(entry) and (heard := sample_rate(describe(wanted[name]))) != rate:
            raise ConfigError(f"upstreams.{name}: hears audio of {heard} Hz, but model.sample_rate={rate}")


def comparison_job(context: Context) -> ComparisonJob | None:
    """What compares the encoders, if that is asked for.

    Raises:
        ConfigError: a setting does not exist, or there is no such task.
    """
    compared = context.config.get("compare")
    if not compared:
        return None
    if not isinstance(compared, Mapping):
        raise ConfigError(f"compare: {compared!r} should be settings, such as {{task: domain, seconds: 300}}")
    filled = ("upstreams", "cuts", "output", "label", "overwrite")
    check_settings(ComparisonJob, compared, "compare", filled, ("task",))
    settings = {key: value for key, value in compared.items() if key != "task"}
    task, label = compared_task(context)
    encoders = [upstream_entry(context, name) for name in context.config["upstreams"]]
    speech = task.cuts(context, "train")[task.name]
    return ComparisonJob(encoders, speech, comparison_folder(context), label, overwrite=True, **settings)


def encoder_jobs(context: Context) -> dict[str, TrainingJob | ClassifierJob]:
    """What trains the encoders that are not given."""
    entries = context.config["upstreams"].items()
    return {name: _encoder_job(context, name, entry) for name, entry in entries if is_trained_here(entry)}


def _encoder_job(context: Context, name: str, entry: Mapping[str, Any]) -> TrainingJob | ClassifierJob:
    """A recogniser, or with ``label`` a classifier, whose encoder is then an upstream."""
    if not isinstance(entry["data"], list):
        raise ConfigError(f"upstreams.{name}.data: {entry['data']!r} is no list of sets")
    model: Any = OmegaConf.to_container(
        OmegaConf.merge(context.config["model"], {"encoder": entry.get("encoder") or {}}), resolve=True
    )
    job = {
        "output": model_path(context, name),
        "cuts": [cuts_path(context, item, "train") for item in entry["data"]],
        "seed": context.config["seed"],
        **training_settings(entry),
    }
    if not entry.get("label"):
        return TrainingJob(model=model, **job)
    if not entry.get("decoder"):
        raise ConfigError(f"upstreams.{name}: a classifier needs a decoder, such as NeMo's SpeakerDecoder")
    model["decoder"] = {"feat_in": model["encoder"]["d_model"], **entry["decoder"]}
    return ClassifierJob(model=model, label=entry["label"], **job)


def _speech(context: Context, task: Task, split: str) -> list[Path]:
    return [cuts_path(context, name, split) for name in task.sets]


def compared_task(context: Context) -> tuple[Task, str]:
    """The task whose labels tell what the encoders know, and what the labels are.

    Raises:
        ConfigError: there is none of this name with labels.
    """
    name = context.config["compare"].get("task")
    labelled = {task.name: (task, task.label) for task in tasks(context.config) if task.label is not None}
    if name not in labelled:
        raise ConfigError(f"compare.task: there is no task {name!r} with labels{did_you_mean(str(name), labelled)}")
    return labelled[name]


def comparison_folder(context: Context) -> Path:
    """What was found before anything was fused."""
    return context.expdir / "choice"


def cache_folder(context: Context) -> Path:
    """Hidden layers of all encoders for the speech of all tasks."""
    return context.expdir / "features"


def _run(
    context: Context,
    jobs: Mapping[str, tuple[Job, list[Path]]],
    *,
    models: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Runs the jobs that were not done before with the same settings, speech and encoders."""
    files = [identity(path) for entry in (models or {}).values() for path in source_files(entry)]
    wanted, marks = {}, {}
    for name, (job, outputs) in jobs.items():
        cuts: Any = getattr(job, "cuts", ())
        heard = [cuts] if isinstance(cuts, Path) else cuts
        marks[name] = {"job": job, "files": [*files, *(identity(Path(path)) for path in heard)]}
        if context.is_fresh(name, outputs, **marks[name]):
            context.say(f"{name}: done before")
        else:
            wanted[name] = job
    together = all(job.processes == 1 for job in wanted.values())  # torchrun has each of the others to itself
    for name in run_jobs(wanted, context.expdir / "jobs", context.jobs, context.say, together=together, work=steps):
        context.mark_fresh(name, **marks[name])


def steps(job: Job) -> float:
    """How much a training is to do."""
    return float(job.steps) if isinstance(job, TrainingJob | ClassifierJob) else 1.0


def task_cut_files(context: Context) -> list[Path]:
    """What stage 2 leaves."""
    labelled = [
        path
        for task in tasks(context.config)
        if task.label is not None
        for split in _SPLITS
        for path in task.cuts(context, split).values()
    ]
    return [*data.cut_files(context), *labelled]


def encoder_files(context: Context) -> list[Path]:
    """What stage 3 leaves."""
    trained = [name for name, entry in context.config["upstreams"].items() if is_trained_here(entry)]
    compared = [comparison_folder(context) / name for name in FILES] if context.config.get("compare") else []
    return [*(model_path(context, name) for name in trained), cache_folder(context) / "cache.json", *compared]
