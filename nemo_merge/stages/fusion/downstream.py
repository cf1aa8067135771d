"""Stage 4: a downstream model for every task, system and seed, trained together with its interface."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import ConfigError, did_you_mean
from ...fusion.description import TARGET
from ...training.classifier import ClassifierJob
from ...training.ctc import TrainingJob
from ...training.jobs import Job
from ..engine import Context, identity
from ..workers import run_jobs
from .encoders import cache_folder, steps
from .systems import CONTROL, System, Task, all_runs, runs, systems, tasks, upstream_entry

_LARGEST = 64
"""Times the width of a downstream encoder; a control that needs more is not the same model any more."""


def fuse(context: Context) -> None:
    """Stage 4: what is trained already with the same settings and encoders stays."""
    config = context.config
    width = _widths(context)
    digest = cache(lambda path: identity(Path(path)))
    jobs: dict[str, Job] = {}
    marks = {}
    for task in tasks(config):
        for system in systems(config):
            model = _model(context, task, system, width(task, system))
            files = [*task.cuts(context, "train").values(), cache_folder(context) / "cache.json"]
            for seed, (name, path) in zip(config["seeds"], runs(context, task, system).items(), strict=True):
                job = downstream_job(context, task, model, path, seed)
                mark = {"job": job, "files": [digest(str(item)) for item in files]}
                if not context.is_fresh(name, [path], **mark):
                    jobs[name], marks[name] = job, mark
    total = len(tasks(config)) * len(systems(config)) * len(config["seeds"])
    context.say(f"{total - len(jobs)} of {total} models were trained before")
    folder = context.expdir / "jobs"
    together = all(job.processes == 1 for job in jobs.values())  # torchrun has each of the others to itself
    for name in run_jobs(jobs, folder, context.jobs, context.say, together=together, work=steps):
        context.mark_fresh(name, **marks[name])


def downstream_job(
    context: Context, task: Task, model: Mapping[str, Any], output: Path, seed: int
) -> TrainingJob | ClassifierJob:
    """What trains an interface together with its downstream model."""
    cuts = list(task.cuts(context, "train").values())
    if task.label is None:
        return TrainingJob(output=output, cuts=cuts, model=model, seed=seed, **task.training)
    return ClassifierJob(output=output, cuts=cuts, model=model, seed=seed, label="text", **task.training)


def _model(context: Context, task: Task, system: System, width: int) -> dict[str, Any]:
    """NeMo's configuration of a downstream model on fused encoders."""
    encoder, decoder = _parts(task, _settings(context)["features"], width)
    model = {"sample_rate": context.config["model"]["sample_rate"], "encoder": encoder, "decoder": decoder}
    if task.label is None:
        model["labels"] = list(context.config["model"]["labels"])
        model["decoder"] = {**decoder, "num_classes": len(model["labels"]), "vocabulary": model["labels"]}
    return {
        **model,
        "preprocessor": {
            "_target_": TARGET,
            "sample_rate": model["sample_rate"],
            "mode": system.mode,
            "upstreams": [upstream_entry(context, name) for name in system.upstreams],
            "cache": str(cache_folder(context).absolute()),
            **_settings(context),
        },
    }


def _settings(context: Context) -> dict[str, Any]:
    """Of every fused preprocessor; the width of what comes out is ``features``."""
    settings = context.config["fuse"].get("settings") or {}
    if not isinstance(settings, Mapping) or not isinstance(settings.get("features"), int):
        raise ConfigError("fuse.settings.features: says no width for what the interfaces make of the encoders")
    return dict(settings)


def check_fusion(context: Context) -> None:
    """Refuses settings that fused preprocessors do not take, as far as these do not depend on the encoders.

    Raises:
        ConfigError: there is such a setting, or a value that is wrong with any encoder.
    """
    from ...fusion import UpstreamFusion

    settings = _settings(context)
    features, _ = settings.pop("features"), settings.pop("save_upstreams", None)
    known = set(inspect.signature(UpstreamFusion).parameters) - {"upstreams", "mode", "output_dim"}
    for key in settings:
        if key not in known:
            names = {*known, "features", "save_upstreams"}
            raise ConfigError(f"fuse.settings: there is no setting {key!r}{did_you_mean(str(key), names)}")
    if isinstance(settings.get("interface"), Mapping):
        settings["interface"] = {}  # what one interface takes another does not
    try:
        UpstreamFusion([{"num_layers": 9, "dim": 16}], CONTROL, features, **settings)
    except ConfigError as error:
        raise ConfigError(f"fuse.settings: {error}") from error


def _parts(task: Task, features: int, width: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Encoder and decoder of a downstream model of a width."""
    encoder = {**task.downstream["encoder"], "feat_in": features, "d_model": width}
    return encoder, {**task.downstream["decoder"], "feat_in": width}


def _widths(context: Context) -> Callable[[Task, System], int]:
    """How wide a downstream model is: as its task says, and in controls so that parameters are as many as another's.

    This builds the encoders and the downstream models, without weights, to count.
    """
    config, settings = context.config, _settings(context)
    if not any(system.like for system in systems(config)):
        return lambda task, system: int(task.downstream["encoder"]["d_model"])
    from ...fusion import UpstreamFusion
    from ...fusion.sources import build, describe
    from ...fusion.upstream_fusion import UpstreamShape

    shapes = {name: UpstreamShape.of(build(describe(upstream_entry(context, name)))) for name in config["upstreams"]}
    own = {key: value for key, value in settings.items() if key not in ("features", "save_upstreams")}

    @cache
    def interface(upstreams: Sequence[str], mode: str) -> int:
        return _count(UpstreamFusion([shapes[name] for name in upstreams], mode, settings["features"], **own))

    @cache
    def head(name: str, width: int) -> int:
        from nemo.core.classes import NeuralModule
        from omegaconf import OmegaConf

        task = next(item for item in tasks(config) if item.name == name)
        labels = len(config["model"]["labels"])
        encoder, decoder = _parts(task, settings["features"], width)
        decoder.setdefault("num_classes", labels)
        return sum(_count(NeuralModule.from_config_dict(OmegaConf.create(part))) for part in (encoder, decoder))

    def width(task: Task, system: System) -> int:
        first = int(task.downstream["encoder"]["d_model"])
        if system.like is None:
            return first
        extra = interface(system.upstreams, system.like) - interface(system.upstreams, CONTROL)
        step = int(task.downstream["encoder"].get("n_heads", 1))
        for wider in range(first, _LARGEST * first, step):
            if head(task.name, wider) >= head(task.name, first) + extra:
                return wider
        raise ConfigError(
            f"fuse.controls: {system.like} on {system.encoders} has {extra} parameters more than {CONTROL}, and no "
            f"downstream model of {task.name} below {_LARGEST} times its width has as many; leave it out"
        )

    return width


def _count(module: Any) -> int:
    return sum(item.numel() for item in module.parameters())


def fused_files(context: Context) -> list[Path]:
    """What stage 4 leaves."""
    return [path for task in tasks(context.config) for path in all_runs(context, task).values()]
