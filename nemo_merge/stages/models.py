"""Stages 3 and 4: train the base and its experts, merge them by every method."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ..training.ctc import TrainingJob
from .data import cuts_path
from .engine import Context
from .workers import run_jobs


def train(context: Context) -> None:
    """Stage 3: the base on the general set, then one expert per domain from it."""
    config = context.config
    base = config["train"]["base"]
    path = model_path(context, "base")
    if context.is_fresh("base", [path], settings=base):
        context.say("base: trained before")
    else:
        job = _job(context, "base", base, model=config["model"])
        for _ in run_jobs({"base": job}, context.expdir / "jobs", 1, context.say):
            context.mark_fresh("base", settings=base)
    jobs = {}
    for domain in config["domains"]:
        settings = {**config["train"]["experts"], "data": [domain]}
        if context.is_fresh(domain, [model_path(context, domain)], settings=settings, base=base):
            context.say(f"{domain}: trained before")
        else:
            jobs[domain] = (_job(context, domain, settings, init_from=path), settings)
    for domain in run_jobs(
        {name: job for name, (job, _) in jobs.items()}, context.expdir / "jobs", context.jobs, context.say
    ):
        context.mark_fresh(domain, settings=jobs[domain][1], base=base)


def merge(context: Context) -> None:
    """Stage 4: one merged model per entry of ``merge.methods``."""
    from .. import merge as merge_checkpoints

    seconds = {}
    for name, settings in context.config["merge"]["methods"].items():
        parameters = dict(settings or {})
        method = parameters.pop("method", name)
        started = time.process_time()
        done = merge_checkpoints(
            model_path(context, "base"),
            [model_path(context, domain) for domain in context.config["domains"]],
            method,
            output=merged_path(context, name),
            overwrite=True,
            workers=context.jobs,
            **parameters,
        )
        seconds[name] = round(time.process_time() - started, 2)
        context.say(str(done))
    (context.expdir / "merged" / "cpu_seconds.json").write_text(json.dumps(seconds, indent=1) + "\n", encoding="utf-8")


def model_path(context: Context, name: str) -> Path:
    """A trained model: ``base`` or the name of a domain."""
    folder = context.expdir / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.nemo"


def merged_path(context: Context, name: str) -> Path:
    """The model merged by one entry of ``merge.methods``."""
    folder = context.expdir / "merged"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.nemo"


def _job(context: Context, name: str, settings: dict[str, Any], **arguments: Any) -> TrainingJob:
    values = dict(settings)
    data = values.pop("data")
    return TrainingJob(
        output=model_path(context, name),
        cuts=tuple(cuts_path(context, item, "train") for item in data),
        seed=context.config["seed"],
        **values,
        **arguments,
    )
