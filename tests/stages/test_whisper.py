"""The recipe on Whisper: its configurations, where the base comes from, and once from end to end in miniature."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from nemo_merge import open_checkpoint
from nemo_merge.cli.finetune import read_job
from nemo_merge.errors import ConfigError
from nemo_merge.reporting.findings import findings
from nemo_merge.stages import whisper
from nemo_merge.stages.__main__ import _settings
from nemo_merge.stages.domains.experiment import check
from nemo_merge.stages.domains.search import candidates
from nemo_merge.stages.domains.training import fine_tunings, train
from nemo_merge.stages.engine import Context, identity
from nemo_merge.stages.models import model_path
from nemo_merge.stages.results import decode_settings
from nemo_merge.training.decode import DecodingJob
from nemo_merge.training.whisper_checks import check_whisper_job

RECIPE = Path(__file__).parents[2] / "recipes" / "whisper"
CONFIGS = ("whisper", "whisper_large_v3")


def load(name: str, folder: Path, *overrides: str) -> Context:
    return Context(_settings(RECIPE / "conf" / f"{name}.yaml", overrides), folder / "data", folder / "exp")


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_are_whole(name, tmp_path):
    context = load(name, tmp_path)
    check(context.config)
    assert candidates(context.config)
    job = DecodingJob({}, {}, "out", **decode_settings(context.config))
    job.check()
    assert job.beam == 5
    assert model_path(context, "base").suffix == ""
    assert {path.suffix for path in (Path(job.output) for job in fine_tunings(context, tmp_path).values())} == {""}


def test_the_published_protocol(tmp_path):
    context = load("whisper_large_v3", tmp_path)
    jobs = fine_tunings(context, model_path(context, "base"))
    assert set(jobs) == {"joint-seed0", *(f"{domain}-seed0" for domain in context.config["domains"])}
    wanted = {name: (10, 1e-5) if name.startswith("joint") else (3, 2e-6) for name in jobs}
    assert {name: (job.epochs, job.optim["lr"]) for name, job in jobs.items()} == wanted
    assert {job.batch_size * job.accumulate * job.devices for job in jobs.values()} == {256}
    assert len(jobs["joint-seed0"].train) == 10
    boosted = [item for item in candidates(context.config) if item.entry == "boosted_tsvm"]
    assert {item.settings["beta"] for item in boosted} == {0.3}


def test_jobs_are_possible_but_for_their_data(tmp_path):
    """What stands against a training of the study is that its cuts are not there yet, and nothing else."""
    for name in CONFIGS:
        context = load(name, tmp_path)
        for job in fine_tunings(context, Path("openai/whisper-large-v3")).values():
            with pytest.raises(ConfigError) as found:
                check_whisper_job(job)
            problems = [line for line in str(found.value).splitlines() if not line.endswith("problems:")]
            assert all("does not exist" in line for line in problems), problems


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.base.whisper=nowhere", "nowhere is neither the folder of a Whisper nor OWNER/NAME"),
        ("train.experts.learning_rate=1", "there is no setting 'learning_rate'"),
        ("decode.beams=5", "decode: there is no setting 'beams'; did you mean 'beam'"),
        ("score.baseline=ti", "there is no system 'ti'; did you mean 'ties'"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(change, message, tmp_path):
    context = load("whisper", tmp_path, change)
    with pytest.raises(ConfigError, match=message):
        train(context)


def test_nothing_is_found_where_nothing_is_recognised():
    def row(rate: float) -> dict:
        return {"family": None, "means": {"in domain": {"interval": [rate, rate, rate]}}}

    assert findings({"systems": {"base": row(5.75), "soup": row(1.0)}}) == []


def test_the_place_of_a_base_is_a_link(tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    asked = []
    monkeypatch.setattr(whisper, "whisper_folder", lambda *given: asked.append(given) or tmp_path / "cache")
    context = load("whisper_large_v3", tmp_path, "train.base.revision=abc")
    for _ in range(2):
        assert whisper.make_base(context).resolve() == tmp_path / "cache"
    assert asked == [("openai/whisper-large-v3", "abc")] * 2


def test_a_folder_is_what_is_in_it(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    before = identity(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert identity(tmp_path / "b") == before
    (tmp_path / "b" / "x").write_text("2")
    assert identity(tmp_path / "b") != before


def test_commands_of_the_tutorial_are_valid(monkeypatch):
    monkeypatch.chdir(RECIPE)
    page = (RECIPE.parents[1] / "docs" / "tutorials" / "whisper.md").read_text()
    commands = [
        shlex.split(line, comments=True)
        for block in re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    jobs = [read_job(words[2:]) for words in commands if words[:2] == ["nemo-merge", "finetune"]]
    assert [(job.epochs, job.steps, job.optim["lr"], job.language) for job in jobs] == [(3, None, 2e-6, "pt")] * 2
    for words in commands:
        if words[0] == "./run.sh":
            settings = [word for word in words[1:] if "=" in word]
            assert _settings(RECIPE / "conf" / "whisper.yaml", tuple(settings))


SETS = ("broadcast_news", "telephone", "children", "ood_kitchen", "brazilian")
TINY = [
    *(f"corpus.{name}={{train: {0 if index > 2 else 6}, dev: 2, test: 2}}" for index, name in enumerate(SETS)),
    "train.base.whisper={width: 16, layers: 1, mels: 16, seconds: 8, tokens: 300, most: 100, languages: [pt]}",
    "train.experts.steps=4", "train.joint.steps=4", "train.experts.validate_every=2", "decode.beam=2",
    "search.utterances=1", "merge.methods.task_arithmetic.search={scale: [0.5, 1.0]}",
    "merge.methods.boosted_tsvm.search={beta: [0.3]}",
]  # fmt: skip


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folders = ["--datadir", str(folder / "data"), "--expdir", str(folder / "exp"), "--nj", "1"]
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(
        [str(RECIPE / "run.sh"), *folders, *TINY, *arguments], capture_output=True, text=True, env=environment
    )


@pytest.mark.slow
@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("transformers", "accelerate", "espeakng_loader")), reason="extras"
)
def test_the_recipe(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("DONE ") == 8
    folder = tmp_path / "exp"
    results = (folder / "RESULTS.md").read_text()
    for text in ("with random weights", "against joint fine-tuning", "![In domain", "boosted_tsvm", "lors"):
        assert text in results
    assert not list((folder / "search").glob("search-*"))
    experts = [open_checkpoint(folder / "models" / f"{name}-seed0") for name in SETS[:3]]
    soup = open_checkpoint(folder / "merged" / "soup-seed0")
    for name in soup:
        mean = sum(item[name].double() for item in experts) / 3
        torch.testing.assert_close(soup[name].double(), mean, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(experts[0][name], experts[1][name]) for name in soup)
    assert len(json.loads((folder / "scores.json").read_text())["systems"]) == 9

    again = run(tmp_path, "decode.beam=3")
    assert again.returncode == 0, again.stdout + again.stderr
    started = re.findall(r"START stage \d \((\w+)\)", again.stdout)
    assert started[:2] == ["decode", "score"]  # and the report, where another beam finds other words
    assert "decoded before" not in again.stdout
