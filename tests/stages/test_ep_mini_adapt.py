"""The adaptation recipe: its configuration, what it compares, and once from end to end in miniature."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_merge.corpora.mini import NOTICE
from nemo_merge.errors import ConfigError
from nemo_merge.stages.__main__ import _settings
from nemo_merge.stages.adaptation import Setting, fine_tuned, scalings, settings
from nemo_merge.stages.retention import at_levels, chosen, origin
from nemo_merge.training.fine_tune import FineTuningJob

RECIPE = Path(__file__).parents[2] / "recipes" / "ep_mini_adapt"
SETS = ("general", "conversational", "interviews", "english", "code_switching")
TINY = [
    *(f"corpus.{name}.{split}={size}" for name in SETS for split, size in (("train", 8), ("dev", 2), ("test", 2))),
    "train.base.steps=2", "train.base.warmup_steps=1", "train.base.batch_size=4", "train.base.workers=1",
    "seeds=[0,1]", "fine_tune.common.steps=2", "fine_tune.common.batch_size=4", "model.encoder.n_layers=1",
    "fine_tune.common.optim.sched.max_steps=2", "fine_tune.common.optim.sched.warmup_steps=1",
    "fine_tune.methods.lora_l2.sweep={regulariser.beta:[0.01]}",
    "fine_tune.methods.l2_sp.sweep={regulariser.gamma:[0.01]}",
    "fine_tune.methods.ewc.sweep={regulariser.gamma:[0.01]}",
    "fine_tune.methods.bayesian_lora.sweep={adapter.beta:[0.001,0.01]}",
    "fine_tune.methods.bayesian_lora_wide.sweep={adapter.beta:[0.01]}",
    "merge.methods.lora_scaled.scale=[0.5]", "merge.methods.full_scaled.scale=[0.5]",
]  # fmt: skip


@pytest.fixture(scope="module")
def config():
    return _settings(RECIPE / "conf" / "ep_mini_adapt.yaml", ())


def test_every_fine_tuning_is_a_job(config):
    found = {setting.name: setting for setting in fine_tuned(config)}
    jobs = {
        name: FineTuningJob("base.nemo", "out", ["cuts.jsonl"], **setting.options) for name, setting in found.items()
    }
    assert jobs["full"].trainable == "full"
    assert jobs["full"].optim["lr"] != jobs["lora"].optim["lr"]
    assert jobs["full"].optim["sched"] == jobs["lora"].optim["sched"]  # a method changes what it names, no more
    sweep = config["fine_tune"]["methods"]["bayesian_lora"]["sweep"]["adapter.beta"]
    assert [jobs[f"bayesian_lora-{beta:g}"].adapter["beta"] for beta in sweep] == sweep
    assert jobs["lora"].adapter.items() <= jobs[f"bayesian_lora-{sweep[0]:g}"].adapter.items()


def test_every_method_has_a_label_and_every_sweep_a_symbol(config):
    for section in (config["fine_tune"], config["merge"]):
        for name, method in section["methods"].items():
            assert method["label"], name
            assert ("symbol" in method) == bool({"sweep", "scale"} & set(method)), name


def test_scalings_refer_to_fine_tunings(config):
    assert {setting.source.name for setting in scalings(config)} == {"full", "lora"}
    names = [setting.name for setting in settings(config)]
    assert len(set(names)) == len(names)
    config = {**config, "merge": {"methods": {"x": {"of": "lara", "scale": [0.5]}}}}
    with pytest.raises(ConfigError, match=r"merge.methods.x.of: no fine-tuning 'lara'; did you mean 'lora'"):
        list(scalings(config))


def test_variations_begin_at_fine_tunings_of_their_own():
    config = _settings(RECIPE / "conf" / "variations.yaml", ())
    found = {setting.name: setting for setting in settings(config)}
    begins = {name: origin(setting, config["score"]["reference"]) for name, setting in found.items()}
    assert begins["bayesian_long-0.001"] == begins["long_scaled-0.75"] == "lora_long"
    assert begins["bayesian_lora-0.001"] == begins["lora_scaled-0.75"] == "lora"
    assert begins["lora"] is None
    assert set(begins.values()) - {None} <= set(found)
    assert "start" not in found["bayesian_long-0.001"].options


def test_the_chosen_setting_forgets_least_among_those_that_learn_enough():
    compared = [Setting("lora", None, {}), *(Setting("bayes", beta, {}) for beta in (1, 2, 3)), Setting("stiff", 9, {})]
    dev = {  # source, target
        "lora": (0.30, 0.10),
        "bayes-1": (0.25, 0.10),
        "bayes-2": (0.15, 0.11),
        "bayes-3": (0.05, 0.30),  # forgets least, but learns too little
        "stiff-9": (0.05, 0.70),
    }
    assert chosen(compared, dev, "lora", 0.1) == {"lora", "bayes-2", "stiff-9"}
    assert chosen(compared, dev, "lora", 2.5) == {"lora", "bayes-3", "stiff-9"}


def test_methods_are_compared_at_the_same_target_error_rate():
    lora = Setting("lora", None, {})
    compared = [lora, Setting("bayes", 1, {}), Setting("bayes", 2, {}), Setting("scaled", 0.5, {}, of=lora)]
    rates = {  # source, target of two seeds
        "lora": [(0.5, 0.05), (0.4, 0.05)],
        "bayes-1": [(0.3, 0.15), (0.3, 0.15)],
        "bayes-2": [(0.1, 0.35), (0.1, 0.35)],
        "scaled-0.5": [(0.2, 0.15), (0.2, 0.12)],
    }
    found = at_levels(compared, rates, {"reference": "lora", "levels": [0.10, 0.15, 0.25]})
    assert found["bayes"][0] == pytest.approx([0.375, 0.35, 0.4])
    assert found["bayes"][2] == pytest.approx([0.2, 0.2, 0.2])
    assert found["scaled"][1:] == [None, None]  # the second seed's curve ends before
    assert "lora" not in found


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folders = ["--datadir", str(folder / "data"), "--expdir", str(folder / "exp")]
    environment = {**os.environ, "PYTHON": sys.executable}
    script = str(RECIPE / "run.sh")
    return subprocess.run([script, *folders, *TINY, *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.nemo
def test_the_recipe(tmp_path):
    pytest.importorskip("nemo.collections.asr")
    pytest.importorskip("peft")
    done = run(tmp_path, "--nj", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("DONE ") == 8
    results = (tmp_path / "exp" / "RESULTS.md").read_text()
    for text in (NOTICE, "Bayesian LoRA, β=0.01", "Speech-FT", "Backward gain", "![New-domain", "torch"):
        assert text in results
    picture = (tmp_path / "exp" / "trade_off.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 100_000
    scores = json.loads((tmp_path / "exp" / "scores.json").read_text())
    lora = next(row for row in scores["settings"] if row["name"] == "lora")
    assert lora["backward_gain"] == [0, 0, 0]
    assert len(lora["seeds"]) == 2

    again = run(tmp_path, "--nj", "1", "merge.methods.lora_scaled.scale=[0.25]")
    assert again.returncode == 0, again.stdout + again.stderr
    assert re.findall(r"START stage \d \((\w+)\)", again.stdout) == ["merge", "decode", "score", "report"]
    assert "lora-seed0: decoded before" in again.stdout
