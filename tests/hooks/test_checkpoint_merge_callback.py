"""Merging the snapshots of one training."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("lightning")
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from nemo_merge import merge_state_dicts, open_checkpoint
from nemo_merge.errors import ConfigError, NemoMergeError
from nemo_merge.hooks import CheckpointMergeCallback
from tests.fixtures.lightning_models import Tiny, fit, weights_of, write_family
from tests.fixtures.models import same


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_family(tmp_path_factory.mktemp("home"))


class Recorder(Callback):
    """Copies the weights after every step, and validation's metric."""

    def __init__(self):
        self.weights, self.scores = {}, {}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.weights[trainer.global_step] = weights_of(module)

    def on_validation_end(self, trainer, module):
        self.scores[trainer.global_step] = float(trainer.callback_metrics["val_wer"])


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"last": 3}, [4, 6, 8]),
        ({"last": 2, "every_n_steps": 3, "monitor": None}, [3, 6]),
        ({"best": 2}, None),
        ({"best": 2, "storage": "memory"}, None),
        ({"best": 2, "mode": "max"}, None),
        ({"method": "ties", "last": 3}, [4, 6, 8]),
        ({"method": "ties", "last": 3, "storage": "memory"}, [4, 6, 8]),
        ({"method": "task_arithmetic", "last": 2, "scale": 0.4}, [6, 8]),
        ({"last": 3, "weights": "linear"}, [4, 6, 8]),
        ({"last": 2, "weights": [1, 3]}, [6, 8]),
    ],
)
def test_the_output_is_the_merge_of_the_snapshots(home, tmp_path, settings, steps):
    model, recorder = Tiny(), Recorder()
    merging = CheckpointMergeCallback(tmp_path / "merged.safetensors", **settings)
    fit(model, recorder, merging)
    assert same(weights_of(model), load_file(home / "alone.safetensors"))
    if steps is None:
        best = sorted(recorder.scores, key=recorder.scores.get, reverse=settings.get("mode") == "max")
        steps = best[:2][::-1]
    weights = settings.get("weights")
    expected = merge_state_dicts(
        weights_of(Tiny()) if "method" in settings else None,
        [recorder.weights[step] for step in steps],
        settings.get("method", "soup"),
        weights=[0.5, 1.0, 1.5] if weights == "linear" else weights,
        scale=settings.get("scale"),
    )
    merged = load_file(tmp_path / "merged.safetensors")
    assert same(merged, expected)
    if not settings.keys() & {"method", "weights"}:
        for name, value in merged.items():
            if value.is_floating_point():
                mean = torch.stack([recorder.weights[step][name].double() for step in steps]).mean(0)
                torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-7)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_record_says_which_snapshots(tmp_path):
    fit(Tiny(), CheckpointMergeCallback(tmp_path / "merged.safetensors", "ties", last=2))
    with open_checkpoint(tmp_path / "merged.safetensors") as file:
        record = file.metadata.provenance
    assert [entry["path"] for entry in record["experts"]] == ["snapshot at step 6", "snapshot at step 8"]
    assert record["base"]["path"] == "weights at the start of the run"
    assert all(len(next(iter(entry["sha256"].values()))) == 64 for entry in (*record["experts"], record["base"]))


def test_merged_and_last_weights_are_validated(tmp_path):
    merging = CheckpointMergeCallback(tmp_path / "merged.safetensors", last=4, keep="better")
    recorder = Recorder()
    trainer = fit(Tiny(), recorder, merging)
    (outcome,) = merging.outcomes
    assert outcome.trained["val_wer"] == recorder.scores[8] == float(trainer.callback_metrics["last/val_wer"])
    assert outcome.kept == ("merged" if outcome.merged["val_wer"] <= outcome.trained["val_wer"] else "trained")


@pytest.mark.parametrize("best", [False, True])
def test_checkpoints_of_the_trainer_are_merged(tmp_path, best):
    saver = ModelCheckpoint(tmp_path / "run", "{step}", monitor="val_wer", save_top_k=3 if best else -1, save_last=True)
    recorder = Recorder()
    merging = CheckpointMergeCallback(
        tmp_path / "merged.safetensors", from_checkpoints=True, **({"best": 2} if best else {"last": 2})
    )
    fit(Tiny(), recorder, merging, saver, enable_checkpointing=True)
    steps = sorted(recorder.scores, key=recorder.scores.get)[1::-1] if best else [6, 8]
    merged = load_file(tmp_path / "merged.safetensors")
    expected = merge_state_dicts(None, [recorder.weights[step] for step in steps], "soup")
    for name in expected:
        torch.testing.assert_close(merged[name], expected[name], rtol=0, atol=1e-7)
    with open_checkpoint(tmp_path / "merged.safetensors") as file:
        paths = [entry["path"] for entry in file.metadata.provenance["experts"]]
    assert sorted(paths) == sorted(str(tmp_path / "run" / f"step={step}.ckpt") for step in steps)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"last": 2, "best": 2}, "not both"),
        ({"last": 0}, "whole number from 1"),
        ({"best": 2, "every_n_steps": 2}, "with last= only"),
        ({"best": 2, "monitor": None}, "needs a metric"),
        ({"storage": "cloud"}, "storage='cloud'"),
        ({"weights": [1, 2]}, "list of 5 numbers"),
        ({"weights": "quadratic"}, "neither uniform nor linear"),
        ({"method": "slerp", "last": 3}, "cannot merge 3 snapshots"),
        ({"densty": 0.1, "method": "ties"}, "did you mean 'density'"),
    ],
)
def test_bad_settings_are_refused_when_they_are_given(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        CheckpointMergeCallback(tmp_path / "merged.safetensors", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"from_checkpoints": True, "last": 3}, "keeps 1 checkpoints, but 3"),
        ({"from_checkpoints": True, "best": 1}, "no monitor"),
        ({"base": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"base": "other.safetensors", "method": "ties"}, "'linear2.bias' is"),
    ],
)
def test_what_cannot_work_is_said_before_the_first_step(home, tmp_path, settings, message):
    recorder = Recorder()
    if "base" in settings:
        settings = {**settings, "base": home / settings["base"]}
    with pytest.raises(NemoMergeError, match=message):
        fit(
            Tiny(),
            recorder,
            CheckpointMergeCallback(tmp_path / "m.safetensors", **settings),
            ModelCheckpoint(tmp_path),
            enable_checkpointing=True,
        )
    assert not recorder.weights
    assert list(tmp_path.iterdir()) == []


def test_no_snapshot_is_an_error_after_the_training(tmp_path):
    merging = CheckpointMergeCallback(tmp_path / "merged.safetensors", last=2, every_n_steps=100, monitor=None)
    model = Tiny()
    with pytest.raises(NemoMergeError, match="no snapshot was taken"):
        fit(model, merging)
    assert not (tmp_path / "merged.safetensors").exists()


def test_an_interrupted_training_finds_its_snapshots_and_its_start(tmp_path):
    class Interrupted(Exception):
        pass

    class Interrupt(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == 5:
                raise Interrupted

    output, recorder = tmp_path / "merged.safetensors", Recorder()
    first = CheckpointMergeCallback(output, "ties", last=4)
    saver = ModelCheckpoint(tmp_path / "run", "{step}", save_last=True, every_n_train_steps=4)
    with pytest.raises(Interrupted):
        fit(Tiny(), recorder, first, saver, Interrupt(), enable_checkpointing=True)
    assert {path.name for path in (tmp_path / ".merged.safetensors.training").iterdir()} >= {
        "start.safetensors",
        "step-2.safetensors",
        "step-4.safetensors",
    }
    second = CheckpointMergeCallback(output, "ties", last=4)
    fit(Tiny(seed=5), recorder, second, ckpt_path=tmp_path / "run" / "last.ckpt")  # other weights until it is loaded
    expected = merge_state_dicts(weights_of(Tiny()), [recorder.weights[step] for step in (2, 4, 6, 8)], "ties")
    assert same(load_file(output), expected)
    assert not (tmp_path / ".merged.safetensors.training").exists()


def test_a_snapshot_that_cannot_be_written_does_not_end_the_training(home, tmp_path, monkeypatch):
    def full(tensors, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    model = Tiny()
    with pytest.raises(NemoMergeError, match="no space left"):
        fit(model, CheckpointMergeCallback(tmp_path / "merged.safetensors", last=2))
    monkeypatch.undo()
    assert same(weights_of(model), load_file(home / "alone.safetensors"))
