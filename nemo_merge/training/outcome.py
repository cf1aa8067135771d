"""What a fine-tuning leaves: the chosen weights, scaled if asked for, with a record of where they come from."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from .jobs import Report
from .repeatable import LAST
from .sources import read_source
from .trainer import save_model
from .validation import monitored

if TYPE_CHECKING:
    from torch import Tensor

    from .fine_tune import FineTuningJob
    from .whisper_fine_tune import WhisperFineTuningJob

_PACKAGES = ("torch", "nemo_toolkit", "lightning", "lhotse", "peft")
_NOT_RECORDED = ("base", "output", "train", "validation", "overwrite", "resume")


@dataclass(frozen=True)
class Outcome:
    """A finished job.

    Attributes:
        output: the model or adapter.
        steps: optimiser steps that were done.
        best: mean validation value of the weights that were kept, where they were chosen by one.
        record: what the output says of itself.
    """

    output: Path
    steps: int
    best: float | None
    record: Mapping[str, Any]


def finish(
    job: FineTuningJob,
    model: Any,
    trainer: Any,
    before: Mapping[str, Tensor] | None,
    report: Report,
    *,
    write: bool,
) -> Outcome:
    """Takes the weights that the job asks for, writes the output, and removes checkpoints of training.

    Args:
        job: what was done.
        model: the trained model.
        trainer: what trained it.
        before: the base's state dict, where a part of the way to the trained weights is wanted.
        report: called with a line about the result.
        write: whether this is the process that writes.
    """
    best = _best_checkpoint(job, trainer)
    output, steps = Path(job.output), int(trainer.global_step)
    value = None if best is None else float(best.best_model_score)
    made = record(job, steps, value)
    if write:
        if best is not None:
            _load(model, best.best_model_path)
        model.cpu()
        if output.suffix == ".nemo":
            _write_model(job, model, before, made)
        else:
            _write_adapter(job, model, made)
        _remove_checkpoints(job)
        chosen = "" if value is None else f", {job.select} {value:.4f}"
        report(f"{output.name}: {steps} steps{chosen}; written to {output}")
    return Outcome(output, steps, value, made)


def record(
    job: FineTuningJob | WhisperFineTuningJob, steps: int, best: float | None, packages: Sequence[str] = _PACKAGES
) -> dict[str, Any]:
    """What an output says of itself, as plain data; it has no date, so that the same job gives the same bytes."""
    from ..checkpoints import open_checkpoint

    with open_checkpoint(job.base) as base:
        origin: dict[str, Any] = {"path": str(job.base), "sha256": base.sha256()}
        if base.metadata.provenance:
            origin["record"] = {key: value for key, value in base.metadata.provenance.items() if key != "decisions"}
    defaults = {item.name: _default(item) for item in dataclasses.fields(job)}
    chosen = {key: value for key, value in dataclasses.asdict(job).items() if key not in _NOT_RECORDED}
    sets = {name: read_source(value, name).record() for name, value in job.validation.items()}
    made = {
        "nemo_merge": __version__,
        "made_by": "nemo-merge finetune",
        "base": origin,
        "train": [source.record() for source in job.sources()],
        **({"validation": sets} if sets else {}),
        "settings": {key: value for key, value in chosen.items() if value != defaults[key]},
        "steps_done": steps,
        **({"best": {job.select: round(best, 6)}} if best is not None else {}),
        "versions": {"python": platform.python_version(), **_versions(packages)},
    }
    return json.loads(json.dumps(made, default=str))


def _best_checkpoint(job: FineTuningJob, trainer: Any) -> Any | None:
    """The callback that knows the best weights; None where the last ones count."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    for item in trainer.checkpoint_callbacks:
        if isinstance(item, ModelCheckpoint) and item.monitor and item.monitor == monitored(job):
            return item if item.best_model_path else None
    return None


def _load(model: Any, checkpoint: str) -> None:
    """Puts the weights of a checkpoint of training into the model; what it lacks did not change."""
    import torch

    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict(state, strict=False)


def _write_model(job: FineTuningJob, model: Any, before: Mapping[str, Tensor] | None, made: Mapping[str, Any]) -> None:
    from omegaconf import open_dict

    from .. import adapters, merge_state_dicts
    from ..checkpoints._nemo_config import PROVENANCE_KEY

    if job.trains_adapter:
        adapters.merge_adapter(model)
    if before is not None:  # running statistics go part of the way, too
        after = model.state_dict()
        shares = [1.0 - job.scale, job.scale]
        model.load_state_dict(merge_state_dicts(before, [before, after], "soup", weights=shares))
    with open_dict(model.cfg):
        model.cfg[PROVENANCE_KEY] = dict(made)
    save_model(model, Path(job.output))


def _write_adapter(job: FineTuningJob, model: Any, made: Mapping[str, Any]) -> None:
    from .. import adapters
    from ..checkpoints import RECORD
    from ..checkpoints._yaml import dump

    with appearing(Path(job.output)) as folder:
        adapters.save_adapter(model, folder)
        if job.scale != 1.0:
            _scale(folder / "adapter_config.json", job.scale)
        (folder / RECORD).write_text(dump(made), encoding="utf-8")


def _scale(config: Path, factor: float) -> None:
    """Scales the change that an adapter makes: its ``lora_alpha``."""
    content = json.loads(config.read_text(encoding="utf-8"))
    content["lora_alpha"] *= factor
    content["alpha_pattern"] = {key: value * factor for key, value in (content.get("alpha_pattern") or {}).items()}
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextlib.contextmanager
def appearing(output: Path) -> Iterator[Path]:
    """A folder beside the output that takes its place when it is complete."""
    from ..checkpoints._work import put_in_place

    output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    try:
        folder = work / output.name
        folder.mkdir()
        yield folder
        put_in_place(folder, output)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _remove_checkpoints(job: FineTuningJob) -> None:
    """The best ones stay if the job wants some."""
    if job.keep_checkpoints:
        (job.checkpoints / LAST).unlink(missing_ok=True)
    else:
        shutil.rmtree(job.checkpoints, ignore_errors=True)


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _default(item: dataclasses.Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
