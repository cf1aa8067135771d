"""Stages 2 and 3 of a language recipe: speech read aloud, a base, an expert of every language, joint training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ...errors import ConfigError
from ...training.ctc import TrainingJob
from ...training.fine_tune import FineTuningJob
from ...training.jobs import job_from
from .. import data
from ..data import cuts_path
from ..engine import Context, identity
from ..models import model_path
from ..read_aloud import Reading, read_aloud
from ..workers import run_jobs

JOINT = "joint"
TRIED = ("weight", "kept")
"""What an extension has to be chosen: the new expert's weight, and a factor on the merged model's scale."""


def check(config: Mapping[str, Any]) -> None:
    """Refuses a configuration that later stages cannot work with.

    Raises:
        ConfigError: with what is wrong.
    """
    known, new = list(config["old"]), config["new"]
    if not known or new in known or {new, *known} & set(config["untouched"]):
        raise ConfigError("old must name a language at least, and old, new and untouched different ones")
    for method, given in config["merge"]["methods"].items():
        if not given.get("search", {}).get("scale"):
            raise ConfigError(f"merge.methods.{method}: write what is tried, such as {{search: {{scale: [0.5, 1.0]}}}}")
        tried = given.get("extend", config["extend"]["search"])
        if set(tried) != set(TRIED) or not all(tried.values()):
            raise ConfigError(f"the extension of {method} needs values of {' and '.join(TRIED)}, and of nothing else")


def cuts(context: Context) -> None:
    """Stage 2: cuts of all sets, and speech that is read aloud for the base."""
    check(context.config)
    data.cuts(context)
    for name in context.config.get("read_aloud") or {}:
        made = read_aloud(_reading(context, name), context.datadir / "read_aloud" / name, spoken_path(context, name))
        context.say(f"{name}: training transcripts {'read aloud' if made else 'were read aloud before'}")


def train(context: Context) -> None:
    """Stage 3: the base, an expert of every language, and joint training on all of them."""
    check(context.config)
    config = context.config["train"]
    base = _train_base(context)
    languages = [*context.config["old"], context.config["new"]]
    jobs: dict[str, tuple[FineTuningJob, dict[str, Any]]] = {}
    for name in trained_names(context)[1:]:
        sets = languages if name == JOINT else [name]
        options: Any = OmegaConf.to_container(
            OmegaConf.merge(config["experts"], config[JOINT] if name == JOINT else {})
        )
        sources = [cuts_path(context, item, "train") for item in sets]
        job = job_from(
            FineTuningJob,
            options,
            "train.experts, train.joint",
            base=base,
            output=model_path(context, name),
            train=sources,
            labels=characters(sources),
            seed=context.config["seed"],
            overwrite=True,
        )
        depends_on = {"job": job, "files": [identity(path) for path in (base, *sources)]}
        if context.is_fresh(name, [model_path(context, name)], **depends_on):
            context.say(f"{name}: trained before")
        else:
            jobs[name] = job, depends_on
    running = {name: job for name, (job, _) in jobs.items()}
    for name in run_jobs(running, context.expdir / "jobs", context.jobs, context.say, together=True):
        context.mark_fresh(name, **jobs[name][1])


def characters(manifests: Sequence[Path]) -> list[str]:
    """The characters of the transcripts in cut manifests, the space first."""
    from lhotse import CutSet

    found = {char for path in manifests for cut in CutSet.from_file(path) for char in cut.supervisions[0].text or ""}
    return sorted(found)


def _train_base(context: Context) -> Path:
    """Trains the base, whose characters are those of its data, unless that was done before."""
    config = context.config
    values = dict(config["train"]["base"])
    sets = [cuts_path(context, name, "train") for name in values.pop("data", ())]
    sets += [spoken_path(context, name) for name in values.pop("read_aloud", ())]
    labels = characters(sets)
    model = {**config["model"], "labels": labels}
    model["decoder"] = {**model["decoder"], "vocabulary": labels, "num_classes": len(labels)}
    path = model_path(context, "base")
    filled = {"output": path, "cuts": sets, "model": model, "seed": config["seed"]}
    job = job_from(TrainingJob, values, "train.base", **filled)
    depends_on = {"job": job, "files": [identity(path) for path in sets]}
    if context.is_fresh("base", [path], **depends_on):
        context.say("base: trained before")
    else:
        for name in run_jobs({"base": job}, context.expdir / "jobs", 1, context.say):
            context.mark_fresh(name, **depends_on)
    return path


def _reading(context: Context, name: str) -> Reading:
    values = dict(context.config["read_aloud"][name])
    texts = cuts_path(context, values.pop("texts"), "train")
    return Reading(str(texts), seed=context.config["seed"], **values)


def trained_names(context: Context) -> list[str]:
    """Models that stage 3 trains, the base first; the joint one last, where the configuration has it."""
    joint = [JOINT] if context.config["train"].get(JOINT) else []
    return ["base", *context.config["old"], context.config["new"], *joint]


def spoken_path(context: Context, name: str) -> Path:
    """Cuts of speech that was read aloud."""
    return context.datadir / "cuts" / f"read-aloud-{name}_cuts_train.jsonl.gz"


def cut_files(context: Context) -> list[Path]:
    """What stage 2 leaves."""
    return [*data.cut_files(context), *(spoken_path(context, name) for name in context.config.get("read_aloud") or {})]


def training_files(context: Context) -> list[Path]:
    """What of stage 2 only training reads."""
    training = [item.cuts_path(context, "train") for item in data.speech_sets(context).by_name.values()]
    return [*training, *(spoken_path(context, name) for name in context.config.get("read_aloud") or {})]


def model_files(context: Context) -> list[Path]:
    """What stage 3 leaves."""
    return [model_path(context, name) for name in trained_names(context)]
