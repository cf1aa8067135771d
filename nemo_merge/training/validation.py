"""Development sets during training: their loaders, and the mean over them by which the best weights are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .jobs import Report
from .sources import read_source

if TYPE_CHECKING:
    from .fine_tune import FineTuningJob

MEAN = "mean_"
_TRAINING_ONLY = ("use_bucketing", "num_buckets", "bucket_duration_bins", "bucket_batch_size", "perturb_speed",
                  "noise_path", "rir_enabled", "concatenate_samples", "lowpass_enabled", "compression_enabled",
                  "clipping_enabled", "truncate_duration")  # fmt: skip


def monitored(job: FineTuningJob) -> str | None:
    """The value that the best weights have least of."""
    return None if job.select is None else MEAN + job.select


def add_validation(job: FineTuningJob, model: Any, loader: Mapping[str, Any], report: Report) -> None:
    """Gives a model its development sets, read as the training data is but in order and without augmentation.

    NeMo logs ``val_loss`` and ``val_wer`` of every set; their plain means over the sets are logged beside them as
    ``mean_val_loss`` and ``mean_val_wer``.
    """
    from omegaconf import OmegaConf

    if not job.validation:
        return
    common = {key: value for key, value in loader.items() if key not in (*_TRAINING_ONLY, "input_cfg", "shuffle")}
    loaders, names = [], []
    for name, value in job.validation.items():
        source = read_source(value, f"validation.{name}")
        config = {**common, "input_cfg": [source.input_cfg()], "shuffle": False, "use_bucketing": False}
        config["force_finite"] = True
        model.setup_validation_data(OmegaConf.create(config))
        loaders.append(model._validation_dl)
        names.append(f"{name}_")
    model._validation_dl = loaders if len(loaders) > 1 else loaders[0]
    model._validation_names = names
    model._val_dl_idx = len(names) - 1  # NeMo logs what this one finds without its name, the means among it
    if job.select == "val_loss" and hasattr(model, "compute_eval_loss"):
        model.compute_eval_loss = True  # transducers leave it out by default
    _log_means(model, names, report)


def _log_means(model: Any, names: list[str], report: Report) -> None:
    inner = model.multi_validation_epoch_end
    found: dict[int, Mapping[str, Any]] = {}

    def multi_validation_epoch_end(outputs: Any, dataloader_idx: int = 0) -> Any:
        result = inner(outputs, dataloader_idx)
        logged = result["log"]
        found[dataloader_idx] = dict(logged)
        if dataloader_idx == len(names) - 1:
            keys = [key for key in logged if all(key in values for values in found.values())]
            means = {MEAN + key: sum(values[key] for values in found.values()) / len(found) for key in keys}
            logged.update(means)
            shown = ", ".join(
                f"{key.removeprefix(MEAN)} {float(means[key]):.4f}"
                for key in (f"{MEAN}val_loss", f"{MEAN}val_wer")
                if key in means
            )
            report(f"step {model.trainer.global_step}: {shown}")
        return result

    model.multi_validation_epoch_end = multi_validation_epoch_end
