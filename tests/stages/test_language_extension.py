"""The language recipe: what its search takes, what it measures, and once from end to end in miniature."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from nemo_merge.corpora.mini import NOTICE
from nemo_merge.errors import ConfigError
from nemo_merge.scoring.error_rates import ErrorCounts
from nemo_merge.stages.__main__ import _settings
from nemo_merge.stages.languages.choice import choose
from nemo_merge.stages.languages.scores import compare, gain_share, measure
from nemo_merge.stages.languages.search import candidates
from nemo_merge.stages.languages.training import check
from nemo_merge.stages.read_aloud import pieces

RECIPE = Path(__file__).parents[2] / "recipes" / "language_extension"
SETS = ("conversational", "english", "spanish", "german")
TINY = [
    "corpus.general.train=8", *(f"corpus.{name}.{split}={size}" for name in SETS
                                for split, size in (("train", 8), ("dev", 2), ("test", 3))),
    "corpus.italian.test=2", "corpus.brazilian.test=2",
    "read_aloud.english.utterances=6", "read_aloud.spanish.utterances=6",
    "train.base.steps=2", "train.base.warmup_steps=1", "train.base.batch_size=4", "model.encoder.n_layers=1",
    "train.experts.steps=2", "train.experts.batch_size=4", "train.experts.optim.sched.max_steps=2",
    "train.experts.optim.sched.warmup_steps=1", "train.joint.steps=2", "train.joint.optim.sched.max_steps=2",
    "merge.methods.lors.search.scale=[0.5,1.0]", "merge.methods.task_arithmetic.search.scale=[0.4]",
    "merge.methods.task_arithmetic.extend={weight:[1.0],kept:[1.0]}",
    "extend.search={weight:[1.0],kept:[1.0,0.75]}",
]  # fmt: skip


def test_without_a_new_language_the_mean_decides():
    rates = {"a": {"en": 0.1, "es": 0.5}, "b": {"en": 0.2, "es": 0.3}}
    assert choose(rates).name == "b"


def test_the_new_language_decides_among_those_that_lose_little():
    before = {"en": 0.2, "es": 0.4}  # mean 0.3
    rates = {
        "timid": {"en": 0.2, "es": 0.40, "it": 0.9},
        "good": {"en": 0.25, "es": 0.41, "it": 0.5},  # mean 0.33
        "greedy": {"en": 0.3, "es": 0.5, "it": 0.1},
    }
    assert choose(rates, "it", before, 0.101).name == "good"
    assert choose(rates, "it", before, 0.5).name == "greedy"
    del rates["timid"]
    forced = choose(rates, "it", before, 0.01)
    assert forced.name == "good"
    assert "none is within" in forced.reason


def counts(errors, words=10):
    return [ErrorCounts(count, 0, 0, words) for count in errors]


@pytest.fixture
def heard():
    """Errors in two utterances of a language; the expert of ``it`` halves them, that of ``es`` gains nothing."""
    base = {"en": counts([4, 4]), "es": counts([4, 4]), "it": counts([8, 8]), "ru": counts([9, 9])}
    return {
        "base": base,
        "en": {**base, "en": counts([2, 2])},
        "es": base,
        "it": {**base, "it": counts([4, 4])},
        "merged-lors": {**base, "en": counts([2, 2])},
        "extended-lors": {**base, "en": counts([3, 2]), "it": counts([5, 5]), "ru": counts([10, 8])},
        "again-lors": {**base, "en": counts([2, 2]), "it": counts([4, 4])},
    }


def test_gain_and_loss_are_shares(heard):
    found = compare(heard, "lors", ["en", "es"], "it", ["ru"])
    assert found["extended"]["gain"][0] == pytest.approx(3 / 4)
    assert found["extended"]["lost"]["en"][0] == pytest.approx(1 / 4)
    assert found["extended"]["lost"]["es"][0] == 0
    assert found["extended"]["loss"][0] == pytest.approx((0.25 + 0.4) / (0.2 + 0.4) - 1)  # of the mean over both
    assert found["extended"]["moved"][0] == 0
    assert found["again"]["gain"][0] == 1
    assert found["merged"]["G"] == 1  # es is undefined and left out
    assert found["extended"]["G"] == pytest.approx((3 / 4 + 3 / 4) / 2)
    low, high = found["extended"]["lost"]["en"][1:]
    assert low == 0
    assert high == pytest.approx(1 / 2)


def test_an_expert_without_a_gain_leaves_its_share_undefined(heard):
    assert all(map(math.isnan, gain_share(heard, heard["extended-lors"], "es")))
    assert measure(heard, heard["base"], heard["base"], ["en"], "it", [])["moved"] is None


def test_pieces_are_runs_of_words_of_one_transcript():
    transcripts = ["uno dos tres cuatro", "cinco", "seis siete"]
    found = list(islice(pieces(transcripts, (2, 3), np.random.default_rng(0)), 200))
    assert {len(text.split()) for text in found} == {2, 3}
    assert all(any(f" {text} " in f" {whole} " for whole in transcripts) for text in found)
    assert {"uno dos", "dos tres cuatro", "seis siete"} <= set(found)
    with pytest.raises(ConfigError, match="no transcript has 5 words"):
        next(pieces(transcripts, (5, 6), np.random.default_rng(0)))


@pytest.mark.parametrize("name", ["language_extension", "asterisk"])
def test_the_configurations_hold_together(name, tmp_path):
    config = _settings(RECIPE / "conf" / f"{name}.yaml", ())
    languages = [*config["old"], config["new"]]
    assert {*languages, *config["untouched"]} <= set(config["corpus"])
    assert {entry["texts"] for entry in config["read_aloud"].values()} <= set(languages)
    assert set(config["train"]["base"]["read_aloud"]) == set(config["read_aloud"])
    check(config)
    experts, joint = config["train"]["experts"], config["train"]["joint"]
    assert experts["optim"]["sched"]["max_steps"] == experts["steps"]
    assert joint["optim"]["sched"]["max_steps"] == joint["steps"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"old": []}, "old must name a language"),
        ({"new": "english"}, "different ones"),
        ({"merge": {"methods": {"lors": {}}}}, "merge.methods.lors: write what is tried"),
        ({"extend": {"search": {"weight": [1.0]}}}, "the extension of lors needs values of weight and kept"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(change, message):
    config = _settings(RECIPE / "conf" / "language_extension.yaml", ())
    with pytest.raises(ConfigError, match=message):
        check({**config, **change})


def test_every_combination_is_a_candidate():
    config = {
        "merge": {"methods": {"lors": {"search": {"scale": [0.5, 1.0], "density": [0.1]}}, "ties": {"search": {"scale": [1]}}}},
        "extend": {"search": {"weight": [1.0, 2.0], "kept": [1.0, 0.75]}},
    }  # fmt: skip
    context = type("Context", (), {"config": config})
    assert [item.name for item in candidates(context, "merged")] == [
        "merged-lors-scale0.5-density0.1",
        "merged-lors-scale1-density0.1",
        "merged-ties-scale1",
    ]
    assert len(list(candidates(context, "extended"))) == 8


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folders = ["--datadir", str(folder / "data"), "--expdir", str(folder / "exp")]
    environment = {**os.environ, "PYTHON": sys.executable}
    script = str(RECIPE / "run.sh")
    return subprocess.run([script, *folders, *TINY, *arguments], capture_output=True, text=True, env=environment)


def take_away_training_data(folder: Path) -> int:
    """Moves all audio and manifests of training out of a data folder; returns how many there were."""
    away = folder.with_name("away")
    found = [path for path in folder.rglob("*") if "train" in path.name or path.name == "read_aloud"]
    for path in found:
        if path.exists():  # not inside another that was moved
            target = away / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    return len(found)


@pytest.mark.slow
@pytest.mark.nemo
def test_a_language_is_added_without_any_training_data(tmp_path):
    pytest.importorskip("nemo.collections.asr")
    before = run(tmp_path, "--nj", "1", "--stop_stage", "4")
    assert before.returncode == 0, before.stdout + before.stderr
    assert take_away_training_data(tmp_path / "data") > 10
    assert not list((tmp_path / "data").rglob("*train*"))

    done = run(tmp_path, "--nj", "1", "--stage", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"START stage \d \((\w+)\)", done.stdout) == ["extend", "decode", "score", "report"]
    results = (tmp_path / "exp" / "RESULTS.md").read_text()
    for text in (NOTICE, "German is added to", "lors, extended", "no training data were there", "joint training"):
        assert text in results
    for name in ("languages.png", "trade_off.png"):
        picture = (tmp_path / "exp" / name).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) < 100_000
    scores = json.loads((tmp_path / "exp" / "scores.json").read_text())
    assert scores["training_data"] == []
    assert set(scores["methods"]["cer"]) == {"lors", "ties", "task_arithmetic", "tsvm", "boosted_tsvm", "joint"}

    from nemo_merge import open_checkpoint

    service = scores["chosen"]["merged"]["lors"]["name"]
    extended = scores["chosen"]["extended"]["lors"]["name"]
    with (
        open_checkpoint(tmp_path / "exp" / "merged" / f"{service}.nemo") as old,
        open_checkpoint(tmp_path / "exp" / "extended" / f"{extended}.nemo") as new,
    ):
        grown = {token.text for token in new.vocabulary().tokens} - {token.text for token in old.vocabulary().tokens}
    assert grown
    assert grown <= set("äöüß")
