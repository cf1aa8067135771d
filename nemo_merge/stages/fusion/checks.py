"""What is wrong with the settings of a study of fusion, found before anything is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...errors import ConfigError
from ...training.classifier import ClassifierJob
from ...training.ctc import TrainingJob
from ..engine import Context
from ..results import decode_settings
from .downstream import check_fusion, downstream_job
from .encoders import comparison_job, encoder_jobs
from .systems import source_files, systems, tasks, upstream_entry

_SECTIONS = ("model", "upstreams", "fuse", "tasks", "decode")


def check(context: Context) -> None:
    """Finds settings that do not exist, are missing or are wrong.

    Raises:
        ConfigError: there is one.
    """
    config = context.config
    for name in _SECTIONS:
        if not isinstance(config.get(name), Mapping) or not (config[name] or name in ("fuse", "decode")):
            raise ConfigError(f"{name}: {config.get(name)!r} should be entries, {{NAME: ...}}")
    for key in ("sample_rate", "labels", "encoder", "preprocessor"):
        if not config["model"].get(key):
            raise ConfigError(f"model: says nothing about {key}")
    seeds = config.get("seeds")
    whole = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds: {seeds!r} is no list of different whole numbers, such as [0, 1, 2]")
    for name in config["upstreams"]:
        upstream_entry(context, name)
    for name, job in encoder_jobs(context).items():
        _check(job, f"upstreams.{name}")
    systems(config)
    check_fusion(context)
    parts: dict[str, dict[str, str]] = {"preprocessor": {}, "encoder": {}, "decoder": {}}
    for task in tasks(config):
        width = task.downstream["encoder"].get("d_model")
        if type(width) is not int or width < 1:
            raise ConfigError(f"tasks.{task.name}.downstream.encoder: d_model={width!r} is no width")
        _check(downstream_job(context, task, parts, Path(f"{task.name}.nemo"), seeds[0]), f"tasks.{task.name}")
    if (comparison := comparison_job(context)) is not None:
        comparison.check_settings("compare")
    decode_settings(config)


def _check(job: TrainingJob | ClassifierJob, place: str) -> None:
    try:
        job.check()
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def given_files(context: Context) -> list[Path]:
    """What stages 3 and 4 read from elsewhere, after a look at all settings."""
    check(context)
    return [path for entry in context.config["upstreams"].values() for path in source_files(entry)]
