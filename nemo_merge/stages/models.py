"""Stages 3 and 4: train the base and its experts, or take those that are given; merge them by every method."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, did_you_mean
from ..training.ctc import TrainingJob
from ..training.jobs import job_from
from .data import cuts_path
from .engine import Context, identity
from .placement import PLACEMENT
from .workers import run_jobs


def train(context: Context) -> None:
    """Stage 3: the base on the general set, then one expert per domain from it, those apart that are given."""
    config = context.config
    given = given_models(context)
    path = train_base(context)
    experts = {}
    for domain in config["domains"]:
        if domain in given:
            continue
        job = _job(context, domain, {**config["train"]["experts"], "data": [domain]}, init_from=path)
        if context.is_fresh(domain, [model_path(context, domain)], **_depends_on(job)):
            context.say(f"{domain}: trained before")
        else:
            experts[domain] = job
    for domain in run_jobs(experts, context.expdir / "jobs", context.jobs, context.say):
        context.mark_fresh(domain, **_depends_on(experts[domain]))


def train_base(context: Context) -> Path:
    """Trains the model that all others start from, unless it is given or was trained before, and returns its path.

    Given experts are taken first, so that nothing is trained where one of them cannot be used.
    """
    if on_whisper(context.config):
        from .whisper import make_base

        return make_base(context)
    path = model_path(context, "base")
    if "base" in take_given(context):
        return path
    base = _job(context, "base", context.config["train"]["base"], model=context.config["model"])
    if context.is_fresh("base", [path], **_depends_on(base)):
        context.say("base: trained before")
    else:
        for name in run_jobs({"base": base}, context.expdir / "jobs", 1, context.say):
            context.mark_fresh(name, **_depends_on(base))
    return path


def given_models(context: Context) -> dict[str, Path]:
    """Models that the user has already, by name: ``train.base.given`` and ``train.experts.given``.

    Raises:
        ConfigError: an expert is given for a domain that the recipe does not have, or something is no path.
    """
    settings = context.config["train"]
    experts, domains = settings.get("experts", {}).get("given") or {}, context.config.get("domains", ())
    if not isinstance(experts, Mapping):
        raise ConfigError(f"train.experts.given: {experts!r} should be a path for each domain, {{DOMAIN: PATH}}")
    for domain in experts:
        if domain not in domains:
            raise ConfigError(f"train.experts.given: there is no domain {domain!r}{did_you_mean(str(domain), domains)}")
    given = {name: path for name, path in {"base": settings["base"].get("given"), **experts}.items() if path}
    if "base" not in given and not settings["base"].get("data") and not on_whisper(context.config):
        raise ConfigError(
            "train.base: give a model, train.base.given=PATH, or the sets to train one on, train.base.data"
        )
    for name, path in given.items():
        if not isinstance(path, str):
            raise ConfigError(f"train: {path!r} is given for {name!r}; it should be the path of a .nemo")
    return {name: Path(path).expanduser().absolute() for name, path in given.items()}


def given_files(context: Context) -> list[Path]:
    """What stage 3 reads from elsewhere."""
    return list(given_models(context).values())


def take_given(context: Context) -> dict[str, Path]:
    """Puts links to the given models where trained ones would be, and returns the models.

    Raises:
        NemoMergeError: one is missing, damaged, or no ``.nemo``; then none is taken.
    """
    from .. import open_checkpoint

    given = given_models(context)
    for name, path in given.items():
        with open_checkpoint(path) as checkpoint:
            if checkpoint.format != "nemo":
                raise ConfigError(f"{path} is given for {name!r}; NeMo decodes it later, so that it must be a .nemo")
    for name, path in given.items():
        place = model_path(context, name)
        if place.resolve() != path.resolve():
            place.parent.mkdir(parents=True, exist_ok=True)
            partial = place.with_name(f".{name}.partial.nemo")
            partial.unlink(missing_ok=True)
            partial.symlink_to(path)
            os.replace(partial, place)
        context.mark_fresh(name, given=path)  # what was trained here before is no longer
        context.say(f"{name}: {path}, given")
    return given


def merge(context: Context) -> None:
    """Stage 4: one merged model per entry of ``merge.methods``."""
    from .. import merge as merge_checkpoints

    (context.expdir / "merged").mkdir(parents=True, exist_ok=True)
    device = "cpu" if PLACEMENT.get().gpus == 0 else context.config["merge"].get("device", "cpu")
    seconds = {}
    for name, settings in context.config["merge"]["methods"].items():
        parameters = dict(settings)
        method = parameters.pop("method", name)
        experts = parameters.pop("experts", context.config["domains"])
        started = time.process_time()
        done = merge_checkpoints(
            model_path(context, "base"),
            [model_path(context, domain) for domain in experts],
            method,
            output=merged_path(context, name),
            overwrite=True,
            **{"device": device, "workers": context.jobs, **parameters},
        )
        seconds[name] = round(time.process_time() - started, 2)
        context.say(str(done))
    (context.expdir / "merged" / "cpu_seconds.json").write_text(json.dumps(seconds, indent=1) + "\n", encoding="utf-8")


def model_files(context: Context) -> list[Path]:
    """What stage 3 leaves."""
    return [model_path(context, name) for name in ("base", *context.config["domains"])]


def merged_files(context: Context) -> list[Path]:
    """What stage 4 leaves."""
    return [merged_path(context, name) for name in context.config["merge"]["methods"]]


def on_whisper(config: Mapping[str, Any]) -> bool:
    """Whether the models of a recipe are Whispers, which are folders: ``train.base.whisper`` says where from."""
    return "whisper" in ((config.get("train") or {}).get("base") or {})


def suffix(config: Mapping[str, Any]) -> str:
    """What the names of a recipe's models end with."""
    return "" if on_whisper(config) else ".nemo"


def model_path(context: Context, name: str) -> Path:
    """A trained model: ``base`` or the name of a domain."""
    return context.expdir / "models" / f"{name}{suffix(context.config)}"


def merged_path(context: Context, name: str) -> Path:
    """The model merged by one entry of ``merge.methods``."""
    return context.expdir / "merged" / f"{name}{suffix(context.config)}"


def _job(context: Context, name: str, settings: dict[str, Any], **arguments: Any) -> TrainingJob:
    values = {key: value for key, value in settings.items() if key != "given"}
    data = values.pop("data")
    return job_from(
        TrainingJob,
        values,
        "train.base" if name == "base" else "train.experts",
        output=model_path(context, name),
        cuts=tuple(cuts_path(context, item, "train") for item in data),
        seed=context.config["seed"],
        **arguments,
    )


def _depends_on(job: TrainingJob) -> dict[str, Any]:
    """The job, and what the files that it reads hold."""
    files = [*job.cuts, *([job.init_from] if job.init_from else [])]
    return {"job": job, "files": [identity(path) for path in files]}
