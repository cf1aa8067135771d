"""Models that the user has already take the place of trained ones."""

from __future__ import annotations

import dataclasses
import gzip

import pytest
import torch

from nemo_merge.errors import CheckpointError, ConfigError
from nemo_merge.stages import models
from nemo_merge.stages.engine import Context, StageError, run
from nemo_merge.stages.recipes import MERGE
from tests.fixtures.models import write_nemo

TRAIN = dataclasses.replace(next(stage for stage in MERGE if stage.name == "train"), after=())


@pytest.fixture
def given(nemo_family):
    base, experts = nemo_family
    return {"base": base, "broadcast_news": experts[0], "telephone": experts[1]}


def context(folder, given, **experts) -> Context:
    train = {"base": {"given": str(given["base"])}, "experts": {"given": {k: str(v) for k, v in experts.items()}}}
    sets = {name: {"train": 1, "dev": 0, "test": 0} for name in ("broadcast_news", "telephone")}
    return Context(
        {"train": train, "corpus": sets, "domains": [*sets]}, folder / "data", folder / "exp", _console=print
    )


def test_nothing_is_trained_and_nothing_is_copied(given, tmp_path, capsys):
    mine = context(tmp_path, given, broadcast_news=given["broadcast_news"], telephone=given["telephone"])
    run([TRAIN], mine)
    for name, path in given.items():
        assert models.model_path(mine, name).resolve() == path
    assert not (tmp_path / "exp" / "jobs").exists()
    run([TRAIN], mine)
    assert "SKIP" in capsys.readouterr().out
    write_nemo(given["telephone"], {"other.weight": torch.ones(2, 2)})
    run([TRAIN], mine)
    assert f"another {given['telephone']}" in capsys.readouterr().out


def test_a_trained_model_may_be_given_to_itself(given, tmp_path):
    mine = context(tmp_path, given, broadcast_news=given["broadcast_news"], telephone=given["telephone"])
    models.take_given(mine)
    again = context(
        tmp_path,
        {"base": models.model_path(mine, "base")},
        broadcast_news=given["broadcast_news"],
        telephone=given["telephone"],
    )
    models.take_given(again)
    assert models.model_path(again, "base").resolve() == given["base"]


def test_a_missing_model_is_found_before_anything_runs(given, tmp_path):
    with pytest.raises(ConfigError, match=r"stage 3 \(train\) reads .*gone.nemo, which does not exist"):
        run([TRAIN], context(tmp_path, given, broadcast_news=tmp_path / "gone.nemo"))
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize(
    ("experts", "error", "message"),
    [
        ({"telefone": "x.nemo"}, ConfigError, "no domain 'telefone'; did you mean 'telephone'"),
        ({"broadcast_news": 3}, ConfigError, "3 is given for 'broadcast_news'"),
    ],
)
def test_what_is_given_makes_sense(given, tmp_path, experts, error, message):
    mine = context(tmp_path, given)
    mine.config["train"]["experts"]["given"] = experts
    with pytest.raises(error, match=message):
        models.given_models(mine)


@pytest.mark.parametrize("content", ["no checkpoint", None])
def test_one_that_cannot_be_used_stops_all(given, tmp_path, content):
    bad = tmp_path / "bad.nemo"
    if content:
        bad.write_text(content)
    else:
        torch.save({"weight": torch.ones(2)}, bad)
    mine = context(tmp_path, given, broadcast_news=bad)
    with pytest.raises(ConfigError if content is None else CheckpointError):
        models.take_given(mine)
    with pytest.raises(StageError, match=r"bad\.nemo"):
        run([TRAIN], mine)
    assert not (tmp_path / "exp" / "models").exists()


def test_the_others_are_trained(given, tmp_path, monkeypatch):
    mine = context(tmp_path, given, broadcast_news=given["broadcast_news"])
    mine.config["seed"] = 0
    mine.config["train"]["experts"] |= {"steps": 3, "learning_rate": 1e-3}
    asked = {}

    def pretend(jobs, *_, **__):
        asked.update(jobs)
        return list(jobs)

    cuts = models.cuts_path(mine, "telephone", "train")
    cuts.parent.mkdir(parents=True)
    cuts.write_bytes(gzip.compress(b"{}"))
    monkeypatch.setattr(models, "run_jobs", pretend)
    models.train(mine)
    assert list(asked) == ["telephone"]
    assert asked["telephone"].init_from == models.model_path(mine, "base")
