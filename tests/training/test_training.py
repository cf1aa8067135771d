"""Training and decoding through NeMo, in processes as the recipes run them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nemo_merge import open_checkpoint
from nemo_merge.corpora.mini import Sizes, prepare_cuts, prepare_ep_mini, synthesise
from nemo_merge.errors import ConfigError
from nemo_merge.training.ctc import TrainingJob
from nemo_merge.training.decode import DecodingJob, read_hypotheses
from nemo_merge.training.jobs import read_job, write_job
from tests.fixtures.models import same

MODEL = Path(__file__).parents[2] / "configs" / "model" / "fastconformer_ctc_mini.yaml"


def test_jobs_survive_their_file(tmp_path):
    jobs = [
        TrainingJob(output="a.nemo", cuts=["c"], steps=3, learning_rate=1e-3, init_from="b.nemo", workers=2),
        DecodingJob(models={"m": "m.nemo"}, sets={"s": "s.jsonl"}, output="out"),
    ]
    for job in jobs:
        assert read_job(write_job(job, tmp_path / "job.json")) == job
    (tmp_path / "job.json").write_text('{"kind": "dance"}')
    with pytest.raises(ValueError, match="unknown kind of job 'dance'"):
        read_job(tmp_path / "job.json")


def test_a_training_job_needs_one_beginning():
    for start in ({}, {"model": {}, "init_from": "b.nemo"}):
        with pytest.raises(ValueError, match="either a model configuration or a model to start from"):
            TrainingJob(output="a.nemo", cuts=["c"], steps=3, learning_rate=1e-3, **start)


@pytest.mark.slow
@pytest.mark.nemo
def test_training_is_repeatable_and_what_it_saves_decodes(tmp_path):
    pytest.importorskip("nemo.collections.asr")
    from omegaconf import OmegaConf

    dict(synthesise(tmp_path / "corpus", {"telephone": Sizes(24, 1, 3)}))
    prepare_ep_mini(tmp_path / "corpus", tmp_path)
    for split in ("train", "test"):
        prepare_cuts(tmp_path, tmp_path, "telephone", split)
    model = OmegaConf.to_container(OmegaConf.create(yaml.safe_load(MODEL.read_text())), resolve=True)
    common = {
        "cuts": [str(tmp_path / "ep-mini-telephone_cuts_train.jsonl.gz")],
        "steps": 3,
        "learning_rate": 1e-3,
        "batch_size": 4,
    }
    jobs = {
        "first": TrainingJob(output=str(tmp_path / "first.nemo"), model=model, workers=2, **common),
        "second": TrainingJob(output=str(tmp_path / "second.nemo"), model=model, workers=2, **common),
        "tuned": TrainingJob(output=str(tmp_path / "tuned.nemo"), init_from=str(tmp_path / "first.nemo"), **common),
        "decode": DecodingJob(
            models={"tuned": str(tmp_path / "tuned.nemo")},
            sets={"telephone": str(tmp_path / "ep-mini-telephone_cuts_test.jsonl.gz")},
            output=str(tmp_path / "heard"),
        ),
    }
    for name, job in jobs.items():
        torchrun = (
            ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if job.processes == 2 else []
        )
        command = [
            sys.executable,
            *torchrun,
            "-m",
            "nemo_merge.training",
            str(write_job(job, tmp_path / f"{name}.json")),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "[report] " in done.stdout
    first, second, tuned = (dict(open_checkpoint(tmp_path / f"{name}.nemo")) for name in ("first", "second", "tuned"))
    assert same(first, second)
    assert not same(first, tuned)
    heard = read_hypotheses(tmp_path / "heard" / "tuned" / "telephone.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "ep-mini-telephone_test.json").read_text().splitlines()]
    assert [(item.id, item.text) for item in heard] == [(row["id"], row["text"]) for row in rows]
    assert not [path for path in tmp_path.rglob("*.partial*")]


@pytest.mark.slow
@pytest.mark.nemo
def test_an_interrupted_training_goes_on(tmp_path):
    pytest.importorskip("nemo.collections.asr")
    from omegaconf import OmegaConf

    from nemo_merge.training.ctc import train

    dict(synthesise(tmp_path / "corpus", {"telephone": Sizes(24, 1, 3)}))
    prepare_ep_mini(tmp_path / "corpus", tmp_path)
    prepare_cuts(tmp_path, tmp_path, "telephone", "train")
    model = OmegaConf.to_container(OmegaConf.create(yaml.safe_load(MODEL.read_text())), resolve=True)
    model["encoder"]["n_layers"] = 1
    jobs = {
        name: TrainingJob(
            output=str(tmp_path / f"{name}.nemo"),
            cuts=[str(tmp_path / "ep-mini-telephone_cuts_train.jsonl.gz")],
            steps=8,  # more than an epoch
            learning_rate=1e-3,
            batch_size=4,
            model=model,
            checkpoint_every=3,
        )
        for name in ("whole", "broken")
    }
    train(jobs["whole"])

    def interrupt(line):
        if "step 5" in line:
            raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="pulled the plug"):
        train(jobs["broken"], interrupt)
    assert (jobs["broken"].checkpoints / "last.ckpt").is_file()
    other = dataclasses.replace(jobs["broken"], learning_rate=2e-3)
    with pytest.raises(ConfigError, match="of a run with other settings"):
        train(other)
    said: list[str] = []
    train(jobs["broken"], said.append)
    assert "going on with" in said[0]
    whole, broken = (dict(open_checkpoint(tmp_path / f"{name}.nemo")) for name in jobs)
    assert same(whole, broken)
    assert not jobs["broken"].checkpoints.exists()
