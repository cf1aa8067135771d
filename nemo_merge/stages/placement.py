"""Where the jobs of a stage run: the settings ``cmd``, ``--ngpu`` and ``--nj``."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, did_you_mean
from .local import Local, read_template
from .slurm import Slurm
from .tasks import Launcher

_SIDE_BY_SIDE = 16  # tasks that are sent elsewhere at a time; here it is the number of cores


@dataclass(frozen=True)
class Placement:
    """Where and how jobs run.

    Attributes:
        launcher: starts them.
        gpus: for one machine; None to leave it to the jobs.
        side_by_side: tasks at a time; None for as many as the caller says.
        resume: go on from checkpoints of training that was interrupted.
    """

    launcher: Launcher = field(default_factory=Local)
    gpus: int | None = None
    side_by_side: int | None = None
    resume: bool = True


PLACEMENT: ContextVar[Placement] = ContextVar("PLACEMENT", default=Placement())  # noqa: B039  # it is frozen
"""Where :func:`~nemo_merge.stages.workers.run_jobs` runs jobs; the engine sets it for each stage."""


def read_placements(
    setting: Any, stages: tuple[str, ...], folder: Path, *, gpus: int | None, jobs: int | None, resume: bool = True
) -> dict[str, Placement]:
    """What ``cmd`` says of each stage.

    Args:
        setting: ``local``, ``slurm``, a command with placeholders, ``{slurm: {OPTION: VALUE}}``, the path of a YAML
            file that holds one of these, or a mapping from stages to them.
        stages: names of all stages.
        folder: where paths start.
        gpus: what the user wants; None for those that are visible here, or that SLURM's options ask for.
        jobs: tasks side by side; None for the number of cores here, and 16 elsewhere.
        resume: go on from checkpoints of training.

    Raises:
        ConfigError: a setting that does not exist, or more GPUs than there are.
    """
    if isinstance(setting, str) and setting.endswith((".yaml", ".yml")):
        setting = _from_file(folder / setting)
    if isinstance(setting, Mapping) and "slurm" not in setting:
        for name in setting:
            if name not in stages:
                raise ConfigError(f"cmd: {name!r} is neither a stage nor 'slurm'{did_you_mean(name, stages)}")
        by_stage = {name: _placement(value, gpus, jobs, resume) for name, value in setting.items()}
    else:
        by_stage = dict.fromkeys(stages, _placement(setting, gpus, jobs, resume))
    elsewhere = _placement("local", gpus, jobs, resume) if len(by_stage) < len(stages) else None
    return {name: by_stage.get(name, elsewhere) for name in stages}  # type: ignore[misc]


def visible_gpus() -> list[str]:
    """Identities of the GPUs that this process may use, as in ``CUDA_VISIBLE_DEVICES``."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in (part.strip() for part in chosen.split(",")) if name and name != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(index) for index, _ in enumerate(x for x in listed.stdout.splitlines() if x.startswith("GPU "))]


def _placement(setting: Any, gpus: int | None, jobs: int | None, resume: bool) -> Placement:
    if setting in (None, "local"):
        visible = visible_gpus()
        if gpus is not None and gpus > len(visible):
            raise ConfigError(f"--ngpu {gpus}: this machine shows {len(visible)} GPUs; --ngpu 0 runs on the processor")
        if gpus is None and not visible:
            return Placement(Local(), None, jobs, resume)
        ids = visible[:gpus]
        return Placement(Local(ids), len(ids), min(jobs or len(ids), len(ids)) if ids else jobs, resume)
    if setting == "slurm" or isinstance(setting, Mapping):
        options = {} if setting == "slurm" else dict(setting)
        given = options.pop("slurm", {})
        if options or not isinstance(given or {}, Mapping):
            raise ConfigError(f"cmd: {setting!r} should be {{slurm: {{OPTION: VALUE}}}}")
        slurm = Slurm(given or {}, cpu=gpus == 0)
        return Placement(slurm, slurm.gpus if gpus is None else gpus, jobs or _SIDE_BY_SIDE, resume)
    if not isinstance(setting, str) or not setting.strip():
        raise ConfigError(f"cmd: {setting!r} should be local, slurm, or a command")
    if " " not in setting.strip() and "{" not in setting and shutil.which(setting) is None:
        hint = did_you_mean(setting, ("local", "slurm"))
        raise ConfigError(f"cmd: {setting!r} is neither local nor slurm nor a program that can be found{hint}")
    launcher = Local([] if gpus == 0 else None, read_template(setting, gpus or 0))
    return Placement(launcher, gpus, jobs or _SIDE_BY_SIDE, resume)


def _from_file(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"cmd: {path}: no such file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cmd: {path}: {error}") from error
