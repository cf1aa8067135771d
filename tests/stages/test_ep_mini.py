"""The main job from end to end, with a corpus and models far too small to learn anything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_merge import open_checkpoint
from nemo_merge.corpora.mini import NOTICE

SCRIPT = Path(__file__).parents[2] / "recipes" / "ep_mini" / "run.sh"
SETS = ("general", "broadcast_news", "telephone", "children", "ood_kitchen", "ood_football", "ood_radio", "ood_museum", "ood_garden", "brazilian")  # fmt: skip
TINY = [
    *(f"corpus.{name}.{split}={size}" for name in SETS for split, size in (("train", 8), ("dev", 1), ("test", 2))),
    "train.base.steps=2", "train.base.warmup_steps=1", "train.base.batch_size=4",
    "train.experts.steps=2", "train.experts.warmup_steps=1", "model.encoder.n_layers=1",
]  # fmt: skip


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folders = ["--datadir", str(folder / "data"), "--expdir", str(folder / "exp")]
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run([str(SCRIPT), *folders, *arguments, *TINY], capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.nemo
def test_the_main_job(tmp_path):
    pytest.importorskip("nemo.collections.asr")
    done = run(tmp_path, "--nj", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("DONE ") == 9
    results = (tmp_path / "exp" / "RESULTS.md").read_text()
    assert NOTICE in results
    for text in ("boosted_tsvm", "expert: telephone", "against task_arithmetic", "![Word error rate", "torch", "S.Err"):
        assert text in results
    assert (tmp_path / "exp" / "wer.png").read_bytes().startswith(b"\x89PNG")
    scores = json.loads((tmp_path / "exp" / "scores.json").read_text())
    assert set(scores["sets"]) == {
        "base",
        "broadcast_news",
        "telephone",
        "children",
        "soup",
        "task_arithmetic",
        "ties",
        "tsvm",
        "boosted_tsvm",
    }
    record = open_checkpoint(tmp_path / "exp" / "merged" / "ties.nemo").metadata.provenance
    assert len(record["experts"]) == 3

    packed = tmp_path / "exp" / "pack"
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=packed).returncode == 0
    assert len(list(packed.glob("models/*.nemo"))) == 5
    assert not [path for path in packed.rglob("*") if path.suffix in (".wav", ".flac", ".jsonl", ".gz")]

    again = run(tmp_path, "--nj", "1")
    assert again.returncode == 0
    assert again.stdout.count("SKIP ") == 9
    assert "START" not in again.stdout

    changed = run(tmp_path, "--nj", "2", "merge.methods.ties.density=0.5")
    assert changed.returncode == 0, changed.stdout + changed.stderr
    started = re.findall(r"START stage \d \((\w+)\)", changed.stdout)
    assert started == ["merge", "decode", "score", "report", "pack"]
    assert "changed: merge.methods.ties.density" in changed.stdout
    assert "soup: decoded before" in changed.stdout
    assert "ties: decoded before" not in changed.stdout
