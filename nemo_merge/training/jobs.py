"""Work that needs NeMo, described by a file and done by a process of its own: ``python -m nemo_merge.training FILE``.

NeMo takes ten seconds to import and much memory; a process that ends gives both back, and torchrun can start several.
Small jobs, whose files are given together, can share a process.
"""

from __future__ import annotations

import dataclasses
import json
import os
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ..errors import ConfigError, did_you_mean

REPORT_PREFIX = "[report] "
DONE_PREFIX = "[done] "  # before the file of a job that is finished
PROGRESS_PREFIX = "[progress] "  # before how far it is, as JSON: shown, done, total
ERROR_PREFIX = "[error] "  # before what the user can solve; everything else is a traceback
Report = Callable[[str], None]
J = TypeVar("J", bound="Job")


@dataclass(frozen=True)
class Job:
    """Something to do; its fields are written to and read from JSON."""

    kind: ClassVar[str]

    @property
    def processes(self) -> int:
        """Processes that do it together, on each machine."""
        return 1

    @property
    def nodes(self) -> int:
        """Machines that do it together."""
        return 1

    def placed(self, gpus: int | None, resume: bool) -> Job:
        """The same work in other circumstances.

        Args:
            gpus: that each machine has for it; None where that is not known, 0 for none.
            resume: whether an interrupted run may be continued.

        Raises:
            ConfigError: it cannot be done with so few GPUs.
        """
        return self

    @abstractmethod
    def run(self, report: Report) -> None:
        """Does it; ``report`` shows a line to the user."""


def write_job(job: Job, path: Path) -> Path:
    """Writes a job file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"kind": job.kind, **dataclasses.asdict(job)}
    path.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    return path


def read_job(path: Path) -> Job:
    """Reads a job file.

    Raises:
        ValueError: it describes no known kind of job.
    """
    from ..fusion.choice_job import ComparisonJob
    from ..searching.job import SearchJob
    from .attention_model import AttentionModelJob
    from .classifier import ClassifierJob
    from .cost import CostJob
    from .ctc import TrainingJob
    from .decode import DecodingJob
    from .feature_cache import FeatureCacheJob
    from .fine_tune import FineTuningJob
    from .recalibrate import RecalibrationJob
    from .whisper_fine_tune import WhisperFineTuningJob

    known: tuple[type[Job], ...] = (
        TrainingJob,
        ClassifierJob,
        AttentionModelJob,
        FineTuningJob,
        WhisperFineTuningJob,
        DecodingJob,
        RecalibrationJob,
        FeatureCacheJob,
        CostJob,
        SearchJob,
        ComparisonJob,
    )
    kinds = {kind.kind: kind for kind in known}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    kind = content.pop("kind", None)
    if kind not in kinds:
        raise ValueError(f"{path}: unknown kind of job {kind!r}")
    return kinds[kind](**content)


def check_settings(
    kind: type[Job],
    settings: Mapping[str, Any],
    place: str,
    filled: Collection[str] = (),
    others: Collection[str] = (),
) -> None:
    """Refuses settings that a kind of job does not have, and misses those that it needs.

    Args:
        kind: of the job.
        settings: values of its fields.
        place: how messages call the settings, such as ``tasks.domain``.
        filled: fields that come from elsewhere, and are no settings.
        others: settings beside the job's fields.

    Raises:
        ConfigError: a setting does not exist or is missing.
    """
    fields = {item.name: item for item in dataclasses.fields(kind) if item.name not in filled}
    for key in settings:
        if key not in fields and key not in others:
            raise ConfigError(f"{place}: there is no setting {key!r}{did_you_mean(str(key), {*fields, *others})}")
    for name, item in fields.items():
        if name not in settings and item.default is item.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{place}: says nothing about {name}")


def job_from(kind: type[J], settings: Mapping[str, Any], place: str, **filled: Any) -> J:
    """A job of which some fields are settings of the user; see :func:`check_settings`."""
    check_settings(kind, settings, place, filled)
    return kind(**filled, **settings)


def shared_out(job: J, gpus: int | None, resume: bool) -> J:
    """A fine-tuning with fewer GPUs than devices: batches that would have been side by side are taken in turn.

    Args:
        job: with ``devices``, ``accumulate`` and ``resume``.
        gpus: that each machine has for it; None where that is not known, 0 for none.
        resume: whether an interrupted run may be continued.

    Raises:
        ConfigError: the devices are no multiple of the GPUs.
    """
    values: Any = job
    changes: dict[str, Any] = {} if resume else {"resume": False}
    if gpus and gpus < values.devices:
        if values.devices % gpus:
            raise ConfigError(f"{values.output}: devices={values.devices} cannot be shared out evenly over {gpus} GPUs")
        changes |= {"devices": gpus, "accumulate": values.accumulate * values.devices // gpus}
    return dataclasses.replace(job, **changes)


def with_fewer_workers(job: J, gpus: int | None) -> J:
    """With fewer GPUs than workers, as many workers as share out the utterances of a step evenly.

    Args:
        job: with ``workers`` and ``batch_size``.
        gpus: that each machine has for it; None where that is not known, 0 for none.
    """
    values: Any = job
    if not gpus or gpus >= values.workers:
        return job
    together = values.workers * values.batch_size
    workers = max(count for count in range(1, gpus + 1) if together % count == 0)
    return dataclasses.replace(values, workers=workers, batch_size=together // workers)


def started_together() -> bool:
    """Whether torchrun or SLURM's srun started this process as one of a group."""
    return "LOCAL_WORLD_SIZE" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def is_first_process() -> bool:
    """Whether this is the process that writes, among those that torchrun or SLURM started."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def report(message: str) -> None:
    """Prints a line that the process which started this one shows to the user."""
    if is_first_process():
        print(f"{REPORT_PREFIX}{message}", flush=True)


def report_done(file: str) -> None:
    """Tells the process which started this one that a job is finished."""
    if is_first_process():
        print(f"{DONE_PREFIX}{file}", flush=True)
