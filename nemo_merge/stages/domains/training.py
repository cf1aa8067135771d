"""Stage 3: the base, an expert per domain and seed, and joint fine-tuning on the data of all domains."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ...training.fine_tune import FineTuningJob
from ...training.jobs import Job, job_from
from ...training.whisper_fine_tune import WhisperFineTuningJob
from ..data import cuts_path
from ..engine import Context, identity
from ..models import given_files as given_base_and_experts
from ..models import model_path, on_whisper, train_base
from ..results import decode_settings
from ..whisper import fine_tuning
from ..workers import run_jobs
from .experiment import JOINT, check, check_splits, expert_path, expert_runs, joint_path, runs, systems
from .search import candidates


def train(context: Context) -> None:
    """Stage 3: what is not given is trained; every fine-tuning starts from the same base."""
    check_settings(context.config)
    fine_tunings(context, model_path(context, "base"))  # raises where a setting does not exist
    check_splits(context)
    jobs = fine_tunings(context, train_base(context))
    digest = functools.cache(identity)  # jobs share their files
    depends_on = {
        name: {"job": job, "files": [digest(str(path)) for path in (job.base, *job.train)]}
        for name, job in jobs.items()
    }
    missing = {}
    for name, job in jobs.items():
        if context.is_fresh(name, [Path(job.output)], **depends_on[name]):
            context.say(f"{name}: trained before")
        else:
            missing[name] = job
    folder = context.expdir / "jobs"
    for name in run_jobs(missing, folder, context.jobs, context.say, together=True, work=_steps):
        context.mark_fresh(name, **depends_on[name])


def check_settings(config: Mapping[str, Any]) -> None:
    """Finds mistakes in the settings of all stages before anything is trained.

    Raises:
        ConfigError: see :func:`~.experiment.check`, :func:`~.search.candidates` and
            :func:`~nemo_merge.stages.results.decode_settings`.
    """
    check(config)
    candidates(config)
    decode_settings(config)


def fine_tunings(context: Context, base: Path) -> dict[str, FineTuningJob | WhisperFineTuningJob]:
    """Everything that is to be fine-tuned, by the model's name."""
    config = context.config
    settings = config["train"]
    domains = list(config["domains"])
    jobs: dict[str, FineTuningJob | WhisperFineTuningJob] = {}

    def add(name: str, output: Path, sets: list[str], seed: int, values: Mapping[str, Any]) -> None:
        if on_whisper(config):
            jobs[name] = fine_tuning(context, base, output, sets, seed, values)
            return
        cuts = [cuts_path(context, item, "train") for item in sets]
        filled = {"base": base, "output": output, "train": cuts, "seed": seed, "overwrite": True}
        jobs[name] = job_from(FineTuningJob, values, "train.experts, train.joint", **filled)

    if JOINT in systems(config) and not settings[JOINT].get("given"):
        values: Any = OmegaConf.to_container(OmegaConf.merge(_jobs(settings["experts"]), _jobs(settings[JOINT])))
        for seed, name in zip(config["seeds"], runs(context, JOINT), strict=True):
            add(name, joint_path(context, seed), domains, seed, values)
    given = settings["experts"].get("given") or {}
    for domain in domains:
        for seed, name in zip(config["seeds"], expert_runs(context, domain), strict=True):
            if domain not in given:
                add(name, expert_path(context, domain, seed), [domain], seed, _jobs(settings["experts"]))
    return jobs


def _steps(job: Job) -> float:
    return float(job.steps or 1) if isinstance(job, FineTuningJob | WhisperFineTuningJob) else 1.0


def _jobs(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a fine-tuning without the models that are given instead."""
    return {key: value for key, value in settings.items() if key != "given"}


def given_files(context: Context) -> list[Path]:
    """What stage 3 takes from elsewhere."""
    joint = (context.config["train"].get(JOINT) or {}).get("given")
    return [*given_base_and_experts(context), *([Path(joint)] if joint else [])]


def model_files(context: Context) -> list[Path]:
    """What stage 3 leaves."""
    jobs = fine_tunings(context, model_path(context, "base"))
    return [model_path(context, "base"), *(Path(job.output) for job in jobs.values())]
