"""Decodes cuts with NeMo models."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from .jobs import Job, Report


@dataclass(frozen=True)
class DecodingJob(Job):
    """Models to run over test sets.

    Attributes:
        models: ``.nemo`` files by name.
        sets: Lhotse cut manifests by name.
        output: folder; the hypotheses go to ``<output>/<model>/<set>.jsonl``.
        batch_size: utterances in a batch.
    """

    kind: ClassVar[str] = "decode"

    models: Mapping[str, str | Path]
    sets: Mapping[str, str | Path]
    output: str | Path
    batch_size: int = 32

    def run(self, report: Report) -> None:
        for name, path in self.models.items():
            transcribe(path, self.sets, Path(self.output) / name, self.batch_size)
            report(f"{name}: decoded")


@dataclass(frozen=True)
class Hypothesis:
    """What a model heard, beside what was said."""

    id: str
    text: str
    pred_text: str


def transcribe(
    model: str | Path, sets: Mapping[str, str | Path], output: Path, batch_size: int = 32
) -> dict[str, list[Hypothesis]]:
    """Transcribes sets of cuts with one model and writes a JSON lines file per set.

    Args:
        model: ``.nemo`` file.
        sets: Lhotse cut manifest of every set, by the set's name.
        output: folder for ``<set>.jsonl``; a set that is already there is read instead of decoded again.
        batch_size: utterances in a batch.

    Returns:
        Hypotheses by set, in the order of the cuts.
    """
    done = {name: read_hypotheses(output / f"{name}.jsonl") for name in sets if (output / f"{name}.jsonl").is_file()}
    if len(done) == len(sets):
        return done
    import torch
    from lhotse import load_manifest
    from nemo.collections.asr.models import ASRModel

    torch.set_num_threads(1)
    restored = ASRModel.restore_from(str(model), map_location="cuda" if torch.cuda.is_available() else "cpu").eval()
    for name, cuts_path in sets.items():
        if name in done:
            continue
        cuts = list(load_manifest(cuts_path))
        audio = [cut.recording.sources[0].source for cut in cuts]
        with torch.inference_mode():
            heard = restored.transcribe(audio, batch_size=batch_size, verbose=False)
        done[name] = [
            Hypothesis(cut.supervisions[0].id, cut.supervisions[0].text, item.text)
            for cut, item in zip(cuts, heard, strict=True)
        ]
        _write(output / f"{name}.jsonl", done[name])
    return done


def read_hypotheses(path: Path) -> list[Hypothesis]:
    """Hypotheses of one set."""
    with open(path, encoding="utf-8") as lines:
        return [Hypothesis(**json.loads(line)) for line in lines]


def _write(path: Path, hypotheses: Sequence[Hypothesis]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in hypotheses), "utf-8")
    os.replace(partial, path)
