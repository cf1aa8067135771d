"""``batch_norm=recalibrate``: the merged model's statistics are estimated from audio before its output appears.

The merge is first written, with averaged statistics, into a hidden folder beside the output; a process of its own
restores it with NeMo and estimates the statistics (:mod:`nemo_merge.training.recalibrate`); then the output is written
with them. This process never imports NeMo.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import Checkpoint, Writer, open_checkpoint
from ..checkpoints._work import WorkFolder, key_of
from ..errors import ConfigError, MergeError, did_you_mean
from ..tensors import Role
from ..training.audio import AudioSample, Source, read_audio
from ..training.jobs import ERROR_PREFIX, write_job
from ..training.processes import run_job
from ..training.recalibrate import RecalibrationJob, plain
from .parallel import default_workers

if TYPE_CHECKING:
    from torch import Tensor

    from .plan import MergePlan

logger = logging.getLogger("nemo_merge")

Audio = Source | Mapping[str, Any]
_KEYS = ("path", "seconds", "seed")


def alone(batch_norm: str, ranks: int) -> None:
    """Refuses to estimate statistics in a merge that several processes share.

    Raises:
        ConfigError: with the remedy.
    """
    if batch_norm == "recalibrate" and ranks > 1:
        raise ConfigError("batch_norm=recalibrate works in one process; merge without torchrun")


def read_calibration(batch_norm: str, audio: Audio | None) -> AudioSample | None:
    """Reads what ``audio`` names; None when no statistics are to be estimated.

    Raises:
        ConfigError: audio without ``batch_norm=recalibrate``, or the other way round, or an unknown key.
        AudioError: the audio cannot be used.
    """
    if batch_norm != "recalibrate":
        if audio is not None:
            raise ConfigError(f"audio is used by batch_norm=recalibrate only, not by batch_norm={batch_norm}")
        return None
    if audio is None:
        raise ConfigError("batch_norm=recalibrate estimates statistics from audio; pass audio=MANIFEST, CUTS or FOLDER")
    options: dict[str, Any] = dict(audio) if isinstance(audio, Mapping) else {"path": audio}
    for key in options:
        if key not in _KEYS:
            raise ConfigError(f"audio: there is no key {key!r}{did_you_mean(str(key), _KEYS)}")
    if "path" not in options:
        raise ConfigError("audio: says no path; write audio=PATH or audio={path: PATH, seconds: 300}")
    seed = options.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConfigError(f"audio: seed={seed!r} is not a whole number")
    return read_audio(options["path"], seconds=options.get("seconds", 600.0), seed=seed)


def asked(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ``audio`` that the record of a merge was asked for with; None where it had none."""
    return {key: record["audio"][key] for key in _KEYS} if record.get("audio") else None


def check_recalibration(template: Checkpoint, roles: Mapping[str, Role]) -> Iterator[str]:
    """What stands against estimating the statistics of a merge into this template."""
    if template.format != "nemo":
        yield (
            f"{template.path}: batch_norm=recalibrate runs the merged model through NeMo and needs .nemo files, not "
            f"{template.format!r}; use batch_norm=average"
        )
    elif not {Role.BATCH_NORM_MEAN, Role.BATCH_NORM_VARIANCE} & set(roles.values()):
        yield (
            f"{template.path}: has no batch-normalisation statistics (conv_norm_type is not batch_norm), so there is "
            "nothing to recalibrate; leave batch_norm out"
        )
    if find_spec("nemo") is None:
        yield "batch_norm=recalibrate needs NeMo, which is not installed; pip install 'nemo-merge[nemo]'"


class Recalibration(ExitStack):
    """Where merged models wait for their statistics; a context manager that leaves no trace of them.

    Like the folder of an output in the making, theirs outlives a process that is killed or interrupted, and the same
    merge goes on with its finished tensors; a merge that was complete already is made again.

    Args:
        plans: plans with ``batch_norm="recalibrate"``, for the same inputs.
        outputs: the outputs, one per plan.
        records: the records that they carry.

    Attributes:
        merged: the files to write the merges to, in a hidden folder beside the outputs.
    """

    def __init__(
        self, plans: Sequence[MergePlan], outputs: Sequence[Path], records: Sequence[Mapping[str, Any]]
    ) -> None:
        super().__init__()
        self._plans, self._outputs, self._records = plans, outputs, records
        self._work = WorkFolder(outputs[0], key_of({"recalibrate": list(records)}))
        self.merged = [self._work.path / f"{index}.nemo" for index in range(len(outputs))]
        for path in self.merged:
            path.unlink(missing_ok=True)  # of a run that was interrupted while it estimated

    def finish(self, merged: Sequence[Writer], *, overwrite: bool, workers: int | None) -> list[Writer]:
        """Completes the merges, estimates their statistics, and writes outputs that have them.

        Args:
            merged: the writers of :attr:`merged`, with all tensors written.
            overwrite: allow outputs that exist to be replaced.
            workers: threads.

        Returns:
            The writers of the outputs, to be committed.

        Raises:
            MergeError: the statistics cannot be estimated.
            OutputError: an output cannot be written.
        """
        for writer in merged:
            writer.commit()
        writers = []
        for plan, output, record, path, found in zip(
            self._plans, self._outputs, self._records, self.merged, self._estimate(workers), strict=True
        ):
            checkpoint = self.enter_context(open_checkpoint(path))
            writer = self.enter_context(plan.template.writer(output, plan.output_specs, record, overwrite=overwrite))
            for name in plan.output_specs.keys() - writer.finished:
                values = found[name].to(plan.output_specs[name].dtype) if name in found else checkpoint[name]
                writer.write(name, 0, values)
            writers.append(writer)
        return writers

    def _estimate(self, workers: int | None) -> list[dict[str, Tensor]]:
        """Statistics of every model by tensor name, float32, shape [channels], from a process of its own."""
        from safetensors.torch import load_file

        plan = self._plans[0]
        assert plan.audio is not None
        job = RecalibrationJob(
            models={path.stem: str(path) for path in self.merged},
            pieces=plain(plan.audio.pieces),
            output=str(self._work.path),
            names=[row.name for row in plan.rows if row.treatment.value == "recalibrated"],
            device=str(plan.device),
            workers=workers or default_workers(),
        )
        _run(write_job(job, self._work.path / "job.json"))
        return [load_file(path.with_suffix(".safetensors")) for path in self.merged]

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        super().__exit__(kind, *rest)
        if kind is not None and issubclass(kind, (KeyboardInterrupt, SystemExit)):
            self._work.pause(always=True)
        else:
            self._work.discard()


def _run(file: Path) -> None:
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        code = run_job(file, 1, logger.info, lambda line: None, errors)
        errors.seek(0)
        log = errors.read()
    if code:
        _, known, message = log.rpartition(ERROR_PREFIX)
        if not known:
            logger.error(log)
            message = f"the process ended with exit code {code}; its output is above"
        raise MergeError(f"batch_norm=recalibrate: {message.strip()}; nothing was written")
