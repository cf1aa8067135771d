"""The recipe that fuses encoders."""

from __future__ import annotations

import copy
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_merge.errors import ConfigError
from nemo_merge.stages.engine import Context
from nemo_merge.stages.fusion import scores
from nemo_merge.stages.fusion.checks import given_files
from nemo_merge.stages.fusion.encoders import cuts, encoder_jobs, train
from nemo_merge.stages.fusion.report import write_report
from nemo_merge.stages.fusion.systems import systems, tasks, upstream_entry
from nemo_merge.training.decode import Hypothesis

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "model_fusion"


@pytest.fixture
def config() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((FOLDER / "conf" / "model_fusion.yaml").read_text())
    read["model"] = yaml.safe_load((ROOT / "configs/model/fastconformer_ctc_mini.yaml").read_text()) | {"labels": [" "]}
    return json.loads(json.dumps(read))  # without the aliases of YAML


def test_every_interface_stands_on_every_set_of_encoders(config):
    config["fuse"] |= {"singles": ["ws", "hconv"], "pairs": ["ws", "hconv", "chconv"], "all": ["hconv"]}
    names = [item.name for item in systems(config)]
    assert len(names) == len(set(names)) == 3 * 3 + 3 * 5 + 2
    assert {"portuguese-hconv", "portuguese+speakers-chconv", "portuguese+languages+speakers-ws-as-hconv"} <= set(names)
    config["upstreams"].pop("speakers")
    assert [item.name for item in systems(config) if len(item.upstreams) == 2] == [
        f"portuguese+languages-{mode}" for mode in ("ws", "hconv", "chconv", "ws-as-hconv", "ws-as-chconv")
    ]  # all of two encoders are their pair


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fuse": {"singles": ["hcnov"]}}, "fuse.singles: there is no interface 'hcnov'; did you mean 'hconv'"),
        ({"fuse": {"singles": ["ws"], "controls": ["hconf"]}}, "fuse.controls: there is no interface 'hconf'"),
        ({"fuse": {}}, "says no interface"),
        ({"tasks": {"a": {"sets": ["telephone"]}}}, "tasks.a: says nothing about downstream"),
        (
            {"tasks": {"a": {"sets": ["telephone"], "downstream": {"encoder": {}}}}},
            "tasks.a.downstream: has no decoder",
        ),
        ({"tasks": {"a": {"sets": ["fone"], "downstream": {"encoder": {}, "decoder": {}}}}}, "fone"),
        ({"upstreams": {"a": {"layers": [1]}}}, "upstreams.a: needs data to be trained on, or one of nemo"),
        (
            {"upstreams": {"a": {"nemo": "a.nemo", "layer": [1]}}},
            "upstreams.a: there is no setting 'layer'; did you mean",
        ),
        ({"upstreams": {"a": {"nemo": "a.nemo", "layers": 1}}}, "upstreams.a: upstreams: layers=1 is no list"),
        ({"upstreams": {"a": {"nemo": "a.nemo", "train": "full"}}}, "upstreams.a: train=full, but encoders stay"),
        ({"upstreams": {"a": "a.nemo"}}, "upstreams.a: 'a.nemo' should be settings"),
        ({"upstreams": {}}, "upstreams: {} should be entries"),
        ({"upstreams.portuguese.layer": 3}, "upstreams.portuguese: there is no setting 'layer'; did you mean 'layers'"),
        ({"upstreams.portuguese.steps": "many"}, "upstreams.portuguese: .* steps='many' is not a whole number"),
        ({"upstreams.portuguese.data": "general"}, "upstreams.portuguese.data: 'general' is no list"),
        ({"upstreams.portuguese.decoder": {"a": 1}}, "upstreams.portuguese.decoder: is for classifiers"),
        ({"upstreams.speakers.encoder": "small"}, "upstreams.speakers.encoder: 'small' should be settings"),
        ({"fuse.singels": ["ws"]}, "fuse: there is no setting 'singels'; did you mean 'singles'"),
        ({"fuse.singles": "ws"}, "fuse.singles: 'ws' is no list of interfaces"),
        ({"fuse.settings.normalise": True}, "fuse.settings: there is no setting 'normalise'; did you mean 'normalize'"),
        ({"fuse.settings.rate": "fast"}, "fuse.settings: rate='fast' is neither"),
        ({"fuse.settings.features": "wide"}, "fuse.settings.features: says no width"),
        ({"fuse.settings.interface": "groups"}, "fuse.settings: interface='groups' should be"),
        ({"tasks.domain.stpes": 3}, "tasks.domain: there is no setting 'stpes'; did you mean 'steps'"),
        ({"tasks.domain.steps": 0}, "tasks.domain: .* steps=0 is not above 0"),
        ({"tasks.domain.optimiser": "adam"}, "tasks.domain: .* optimiser='adam' is not a mapping"),
        ({"tasks.domain.sets": "telephone"}, "tasks.domain.sets: 'telephone' is no list"),
        ({"tasks.domain.downstream.encoder.d_model": None}, "tasks.domain.downstream.encoder: d_model=None"),
        ({"tasks.domain.downstream.loss": {}}, "tasks.domain.downstream: 'loss' is neither encoder nor decoder"),
        ({"compare.secnods": 3}, "compare: there is no setting 'secnods'; did you mean 'seconds'"),
        ({"compare.seconds": "some"}, "compare: seconds='some' is not a number"),
        ({"compare.layers": "all"}, "compare: layers='all' is neither"),
        ({"compare.task": "domian"}, "compare.task: there is no task 'domian' with labels; did you mean 'domain'"),
        ({"model.labels": None}, "model: says nothing about labels"),
        ({"decode.batch": 3}, "decode: there is no setting 'batch'; did you mean 'batch_size'"),
        ({"seeds": [0, 0]}, r"seeds: \[0, 0\] is no list of different"),
    ],
)
def test_settings_that_are_refused(config, tmp_path, changes, message):
    """Before anything is done; a name with dots changes one setting."""
    for name, value in changes.items():
        *path, last = name.split(".")
        functools.reduce(dict.__getitem__, path, config)[last] = value
    with pytest.raises(ConfigError, match=message):
        given_files(Context(config, tmp_path, tmp_path))


def test_the_recipe_as_it_is_passes_and_names_what_it_reads(config, tmp_path):
    context = Context(config, tmp_path, tmp_path)
    assert given_files(context) == []
    config["upstreams"]["portuguese"] |= {"layers": [1, 2], "precision": "fp32"}
    config["upstreams"] |= {"given": {"nemo": "a.nemo"}, "hub": {"huggingface": "nobody/hubert"}}
    config["upstreams"]["folder"] = {"huggingface": str(tmp_path)}
    assert given_files(context) == [Path("a.nemo"), tmp_path]
    assert upstream_entry(context, "portuguese")["layers"] == [1, 2]
    assert encoder_jobs(context)["portuguese"].steps == 700


@pytest.mark.parametrize("stage", [cuts, train])
def test_sets_without_the_speech_that_is_needed_are_refused(config, tmp_path, stage):
    config["tasks"]["domain"]["sets"] = ["telephone", "general"]
    with pytest.raises(ConfigError, match="general has no test"):
        stage(Context(config, tmp_path, tmp_path))


@pytest.mark.nemo
def test_given_encoders_of_another_rate_are_refused_before_others_are_trained(config, tmp_path):
    pytest.importorskip("nemo.collections.asr")
    from tests.fixtures import nemo_models

    nemo_models.ctc(0).save_to(str(tmp_path / "a.nemo"))
    config["upstreams"]["given"] = {"nemo": str(tmp_path / "a.nemo")}
    config["model"]["sample_rate"] = 8000
    with pytest.raises(ConfigError, match=r"upstreams\.given: hears audio of 16000 Hz, but model\.sample_rate=8000"):
        train(Context(config, tmp_path, tmp_path))


def test_a_label_of_several_words_is_right_or_wrong(config, tmp_path):
    task = next(task for task in tasks(config) if task.label)
    found = [Hypothesis("1", "new york", "new orleans"), Hypothesis("2", "rome", "rome")]
    assert [counts.errors for counts in scores._errors(task, found)] == [1, 0]
    assert sum(counts.reference_length for counts in scores._errors(task, found)) == 2


def test_encoders_are_trained_here_or_named(config, tmp_path):
    config["upstreams"] |= {
        "wavlm": {"huggingface": "microsoft/wavlm-base-plus", "layers": [0, 6, 12]},
        "merged": {"merge": "merge.yaml"},
    }
    context = Context(config, tmp_path, tmp_path)
    assert upstream_entry(context, "portuguese") == {"nemo": str(tmp_path / "models" / "portuguese.nemo")}
    assert upstream_entry(context, "wavlm") == config["upstreams"]["wavlm"]
    assert Path(upstream_entry(context, "merged")["merge"]).is_absolute()


def hypotheses(context: Context, wrong: dict[str, int]) -> None:
    """Ten utterances of one label for every run, of which the first so many are heard wrong; one more in odd seeds."""
    for system, errors in wrong.items():
        for seed in context.config["seeds"]:
            folder = context.expdir / "decode" / f"domain-{system}-seed{seed}"
            folder.mkdir(parents=True)
            lines = [
                {"id": str(index), "text": "a", "pred_text": "b" if index < errors + seed % 2 else "a"}
                for index in range(10)
            ]
            (folder / "domain.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    cost = {"parameters": 2_000_000, "trained": 100_000, "real_time_factor": 0.01, "memory": 5_000_000}
    scores.cost_file(context, tasks(context.config)[0]).parent.mkdir(parents=True)
    scores.cost_file(context, tasks(context.config)[0]).write_text(json.dumps(dict.fromkeys(wrong, cost)))


def test_fusion_is_compared_with_what_it_must_beat(config, tmp_path):
    pytest.importorskip("matplotlib")
    config = copy.deepcopy(config)
    config["tasks"].pop("recognition")
    config["fuse"] |= {"singles": ["ws", "hconv"], "pairs": ["ws", "hconv"], "all": [], "controls": ["hconv"]}
    config |= {"seeds": [0, 1], "command": "./run.sh", "compare": None}
    config["model"] = yaml.safe_load((ROOT / "configs/model/fastconformer_ctc_mini.yaml").read_text())
    context = Context(config, tmp_path, tmp_path)
    wrong = {item.name: 4 for item in systems(config)}
    wrong |= {"portuguese-hconv": 3, "speakers-hconv": 1, "portuguese+speakers-hconv": 0}
    hypotheses(context, wrong)
    scores.score(context)
    table = json.loads((tmp_path / "scores.json").read_text())["domain"]
    rows = {row["name"]: row for row in table["systems"]}
    assert rows["portuguese-hconv"]["rate"][0] == pytest.approx(0.35)
    assert rows["portuguese-hconv"]["seeds"] == pytest.approx([0.3, 0.4])
    fused = rows["portuguese+speakers-hconv"]
    assert fused["best alone"]["system"] == "speakers-hconv"
    assert fused["best alone"]["difference"][0] == pytest.approx(-0.1)
    assert fused["weighted sum"]["difference"][0] == pytest.approx(-0.4)
    assert fused["control"]["system"] == "portuguese+speakers-ws-as-hconv"
    pairs, interfaces = table["spread"]["pairs"], table["spread"]["interfaces"]
    assert (pairs["best"], interfaces["best"], interfaces["worst"]) == ("portuguese+speakers", "hconv", "ws")
    assert pairs["difference"][0] == pytest.approx((-0.4 + 0.0) / 2)  # by interface: hconv, ws
    assert interfaces["difference"][0] == pytest.approx(-0.4 / 3)  # one pair of three
    write_report(context)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| portuguese+speakers | 45.0 [" in text
    assert "hconv less ws: -13.3 [" in text
    assert "| portuguese+speakers | hconv | -40.0 [" in text
    assert "| portuguese+speakers | hconv | 0.10 | 2.00 | 0.0100 | 5 |" in text
    assert (tmp_path / "fusion.png").stat().st_size > 10_000


SETS = ("broadcast_news", "telephone")
GONE = ("lectures", "read_news", "read_crowd", "audiobooks", "interviews", "conversational", "parliament", "children")
TINY = [
    *(f"corpus.{name}=null" for name in (*GONE, "spanish", "italian", "german", "english")),
    *(f"corpus.{name}.{split}={size}" for name in SETS for split, size in (("train", 6), ("test", 2))),
    *(f"tasks.{name}.sets=[{','.join(SETS)}]" for name in ("recognition", "domain")),
    *(f"tasks.{name}.steps=2" for name in ("recognition", "domain")),
    *(f"upstreams.{name}.{key}" for name in ("portuguese", "speakers") for key in ("steps=2", "warmup_steps=1")),
    *(f"upstreams.{name}.batch_size=4" for name in ("portuguese", "speakers")),
    "corpus.general.train=24", "upstreams.languages=null", "seeds=[0]", "compare.seconds=30",
    "fuse.singles=[hconv]", "fuse.pairs=[chconv]", "fuse.all=null",
]  # fmt: skip


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folders = ["--datadir", str(folder / "data"), "--expdir", str(folder / "exp")]
    environment = {**os.environ, "PYTHON": sys.executable}
    command = [str(FOLDER / "run.sh"), *folders, *TINY, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.nemo
def test_the_whole_recipe(tmp_path):
    pytest.importorskip("nemo.collections.asr")
    done = run(tmp_path, "--nj", "1")  # every process would import NeMo
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("DONE ") == 8
    table = json.loads((tmp_path / "exp" / "scores.json").read_text())
    assert {row["name"] for row in table["recognition"]["systems"]} == {
        "portuguese-hconv", "portuguese-ws-as-hconv", "speakers-hconv", "speakers-ws-as-hconv",
        "portuguese+speakers-chconv", "portuguese+speakers-ws-as-chconv",
    }  # fmt: skip
    for task in table.values():
        costs = task["costs"]
        for item in ("portuguese-hconv", "speakers-hconv", "portuguese+speakers-chconv"):
            wider = costs[item.replace("-", "-ws-as-")]
            assert 1 <= wider["trained"] / costs[item]["trained"] < 1.1  # the control is at least as large
            assert costs[item]["memory"] > 0 < costs[item]["real_time_factor"]
        both = costs["portuguese+speakers-chconv"]
        assert both["parameters"] - both["trained"] > costs["portuguese-hconv"]["parameters"] * 0.8
    text = (tmp_path / "exp" / "RESULTS.md").read_text()
    assert "## Comparison of encoders" in text
    assert "(choice/choice.png)" in text
    again = run(tmp_path, "--dry_run", "tasks.domain.steps=3")
    assert "SKIP  stage 1" in again.stdout
    assert "WOULD RUN stage 4 (merge)" in again.stdout
