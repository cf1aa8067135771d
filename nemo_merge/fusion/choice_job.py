"""A comparison of encoders as a job, for a process of its own. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from ..errors import CheckpointError, ConfigError, CorpusError, OutputError
from ..training.jobs import Job, Report
from ..training.whisper_base import is_hub_name

JSON, MARKDOWN, PICTURE = FILES = ("choice.json", "choice.md", "choice.png")


@dataclass(frozen=True)
class ComparisonJob(Job):
    """Encoders to compare; see :func:`~nemo_merge.fusion.compare_upstreams`.

    Attributes:
        upstreams: paths and names as of :func:`~nemo_merge.fusion.sources.upstreams_at`, or mappings as of
            :class:`~nemo_merge.fusion.FusedUpstreamPreprocessor`.
        cuts: file of Lhotse cuts.
        output: folder for the report.
        label, layers, seconds, frames, seed: as there.
        threads: of the processor, for one operation.
        overwrite: replace an earlier report.
    """

    kind: ClassVar[str] = "compare_upstreams"

    upstreams: Sequence[str | Mapping[str, Any]]
    cuts: str | Path
    output: str | Path
    label: str = "language"
    layers: int | Sequence[int] | None = None
    seconds: float = 600.0
    frames: int = 4096
    seed: int = 0
    threads: int = 1
    overwrite: bool = False

    def run(self, report: Report) -> None:
        import torch

        from .choice import compare_upstreams

        torch.set_num_threads(self.threads)
        found = compare_upstreams(
            list(self.upstreams),
            self.cuts,
            self.output,
            label=self.label,
            layers=self.layers,
            seconds=self.seconds,
            frames=self.frames,
            seed=self.seed,
        )
        for line in found.markdown().splitlines():
            report(line)

    def check_settings(self, place: str = "comparison of encoders") -> None:
        """Finds numbers that are none; ``place`` is what messages call them.

        Raises:
            ConfigError: with every problem found.
        """
        from ..training.checks import numbers, refuse

        problems = list(numbers(self, ("seconds", "frames", "threads"), ("frames", "seed", "threads"), ()))
        chosen = self.layers if isinstance(self.layers, list | tuple) else [self.layers or 0]
        if any(type(layer) is not int for layer in chosen):
            problems.append(f"layers={self.layers!r} is neither a number of layers nor a list of their numbers")
        refuse(problems, place)

    def check(self) -> None:
        """Finds what is wrong before a library is imported.

        Raises:
            ConfigError: a setting is wrong, or a library is not installed.
            CheckpointError: an encoder is not there.
            CorpusError: the cuts are not there.
            OutputError: the output is a file, is there already, or has no folder to be in.
        """
        for place in self.upstreams:
            if (
                isinstance(place, str)
                and not Path(place).exists()
                and (place.endswith((".yaml", ".yml")) or not is_hub_name(place))
            ):
                raise CheckpointError(f"{place}: no such file or folder, and no OWNER/NAME of the Hugging Face hub")
        if not Path(self.cuts).is_file():
            raise CorpusError(f"{self.cuts}: no such file; give Lhotse cuts")
        output = Path(self.output)
        if output.exists() and not output.is_dir():
            raise OutputError(f"{output}: is a file; the report goes to a folder")
        if not output.parent.is_dir():
            raise OutputError(f"{output}: the folder {output.parent} does not exist; create it first")
        if not self.overwrite and (there := [name for name in FILES if (output / name).exists()]):
            raise OutputError(f"{output / there[0]}: exists already; pass --overwrite, or choose another folder")
        for package, name in (("lhotse", "Lhotse"), ("matplotlib", "matplotlib")):
            if find_spec(package) is None:
                raise ConfigError(f"comparing encoders needs {name}; pip install 'nemo-merge[fusion]'")
        self.check_settings()  # last: it imports torch
