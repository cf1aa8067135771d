"""What models cost to run: parameters, time and memory per second of audio."""

from __future__ import annotations

import functools
import json
import multiprocessing
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..checkpoints import open_checkpoint
from ..checkpoints._work import write_whole
from .jobs import Job, Report


@dataclass(frozen=True)
class Cost:
    """What one model costs.

    Attributes:
        parameters: of the whole model, frozen encoders among them.
        trained: of these, parameters that training changes.
        real_time_factor: seconds of one thread's processor time per second of audio, from samples to texts; on a GPU,
            seconds of wall-clock time.
        memory: bytes by which the process grew at most, weights included; on a GPU, of its memory at most.
    """

    parameters: int
    trained: int
    real_time_factor: float
    memory: int


@dataclass(frozen=True)
class CostJob(Job):
    """Models to measure one after the other, each in a process forked from this one.

    Attributes:
        models: ``.nemo`` files by name; several names of one structure may share a file.
        cuts: Lhotse cuts that every model hears.
        output: JSON file for a :class:`Cost` by name.
        batch_size: utterances in a batch.
        device: as torch calls it; a GPU is measured in this process.
    """

    kind: ClassVar[str] = "cost"

    models: Mapping[str, str | Path]
    cuts: str | Path
    output: str | Path
    batch_size: int = 8
    device: str = "cpu"

    def run(self, report: Report) -> None:
        import nemo.collections.asr.models  # noqa: F401  # before forking, so that what is loaded here is not counted

        from .nemo_recogniser import sample_rate_of
        from .utterances import load_samples, read_test_set

        heard = read_test_set(Path(self.cuts)).utterances

        @functools.cache
        def batches(rate: int) -> list[list[Any]]:
            samples = [load_samples(item, rate) for item in heard]
            return [samples[start : start + self.batch_size] for start in range(0, len(samples), self.batch_size)]

        found = {}
        for name, path in self.models.items():
            with open_checkpoint(path) as checkpoint:
                rate = sample_rate_of(checkpoint.metadata.config)
            found[name] = asdict(self._measured(Path(path), batches(rate)))
            report(f"{name}: real-time factor {found[name]['real_time_factor']:.4f}")
        output = Path(self.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, (json.dumps(found, indent=1) + "\n").encode())

    def _measured(self, path: Path, batches: Sequence[Sequence[Any]]) -> Cost:
        if self.device != "cpu":
            return measure(path, batches, self.device)
        with multiprocessing.get_context("fork").Pool(1) as pool:
            return pool.apply(measure, (path, batches, self.device))


def measure(path: Path, batches: Sequence[Sequence[Any]], device: str) -> Cost:
    """Runs a model over batches of samples at its rate, once to warm up on the first, then over all."""
    import torch

    from .recogniser import RecogniserSettings, open_recogniser

    torch.set_num_threads(1)
    gpu = device != "cpu"
    clock = time.perf_counter if gpu else time.process_time
    before = 0 if gpu else _peak()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    recogniser: Any = open_recogniser(path, RecogniserSettings(), device)
    recogniser.transcribe(batches[0], {})
    started = clock()
    for batch in batches:
        recogniser.transcribe(batch, {})
    seconds = clock() - started
    audio = sum(len(samples) for batch in batches for samples in batch) / recogniser.rate
    counts = [(item.numel(), item.requires_grad) for item in recogniser.model.parameters()]
    return Cost(
        sum(count for count, _ in counts),
        sum(count for count, wanted in counts if wanted),
        seconds / audio,
        torch.cuda.max_memory_allocated() if gpu else _peak() - before,
    )


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
