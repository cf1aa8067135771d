"""Merging the model in training with other experts."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("lightning")
from lightning.pytorch import Callback

from nemo_merge import merge, merge_state_dicts, open_checkpoint
from nemo_merge.errors import CheckpointError, ConfigError, NemoMergeError, OutputError, PlanError
from nemo_merge.hooks import MergeCallback
from tests.fixtures.lightning_models import Tiny, data, fit, weights_of, write_family
from tests.fixtures.models import same


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_family(tmp_path_factory.mktemp("home"))


def callback(home, tmp_path, *, experts=("expert",), **settings):
    settings = {"method": "task_arithmetic", "scale": 0.5, "output": tmp_path / "merged.safetensors", **settings}
    return MergeCallback(home / "base.safetensors", [home / f"{name}.safetensors" for name in experts], **settings)


class Watch(Callback):
    """Notes what training must find again after every validation."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, batch, index):
        optimiser = trainer.optimizers[0].state_dict()["state"]
        moments = [value.clone() for state in optimiser.values() for value in state.values()]
        generators = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" not in name}
        self.seen.append((weights_of(module), moments, generators, module.training, metrics, batch[0].clone()))


def test_training_does_not_notice(home, tmp_path):
    watches = []
    for callbacks in ([], [callback(home, tmp_path, every_n_validations=1)]):
        watches.append(Watch())
        fit(Tiny(), *callbacks, watches[-1])
    for (a, moments_a, generators_a, *rest_a, batch_a), (b, moments_b, generators_b, *rest_b, batch_b) in zip(
        watches[0].seen, watches[1].seen, strict=True
    ):
        assert same(a, b)
        assert all(torch.equal(x, y) for x, y in zip(moments_a, moments_b, strict=True))
        assert torch.equal(generators_a[0], generators_b[0])
        assert generators_a[1:] == generators_b[1:]
        assert rest_a == rest_b
        assert torch.equal(batch_a, batch_b)


def test_the_output_is_the_merge_and_the_metrics_are_those_of_it(home, tmp_path):
    model, merging = Tiny(sets=2), callback(home, tmp_path, keep="merged")
    trainer = fit(model, merging)
    base, expert = (load_file(home / f"{name}.safetensors") for name in ("base", "expert"))
    expected = merge_state_dicts(base, [weights_of(model), expert], "task_arithmetic", scale=0.5)
    merged = load_file(tmp_path / "merged.safetensors")
    assert same(merged, expected)
    (outcome,) = merging.outcomes
    assert (outcome.step, outcome.kept) == (8, "merged")
    for weights, metrics, name in ((merged, outcome.merged, "merge"), (weights_of(model), outcome.trained, "expert")):
        fresh = Tiny()
        fresh.load_state_dict(weights)
        fresh.eval()
        for seed, metric in ((1, "val_wer"), (2, "set1_val_wer")):
            x, y = data(seed).tensors
            error = float((fresh(x) - y).square().mean())
            assert metrics[metric] == pytest.approx(error, rel=1e-5)
            assert float(trainer.callback_metrics[f"{name}/{metric}"]) == pytest.approx(error, rel=1e-5)


def test_the_record_names_inputs_and_method(home, tmp_path):
    fit(Tiny(), callback(home, tmp_path, keep="both"))
    with open_checkpoint(tmp_path / "merged.safetensors") as file:
        record = file.metadata.provenance
    trained, expert = record["experts"]
    assert trained["path"] == str(tmp_path / "merged.trained.safetensors")
    assert expert["path"] == str(home / "expert.safetensors")
    assert all(len(digest) == 64 for entry in (trained, expert) for digest in entry["sha256"].values())
    assert (record["method"]["name"], record["method"]["scale"]) == ("task_arithmetic", 0.5)
    merge(
        home / "base.safetensors",
        [tmp_path / "merged.trained.safetensors", home / "expert.safetensors"],
        "task_arithmetic",
        scale=0.5,
        output=tmp_path / "by_hand.safetensors",
    )
    assert (tmp_path / "by_hand.safetensors").read_bytes() == (tmp_path / "merged.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"min_delta": -100.0}, "merged"),
        ({"min_delta": 100.0}, "trained"),
        ({"min_delta": -100.0, "limits": {"set1_val_wer": -100.0}}, "trained"),
        ({"min_delta": -100.0, "limits": {"set1_val_wer": 100.0}}, "merged"),
        ({"mode": "max", "min_delta": -100.0}, "merged"),
        ({"monitor": {"val_wer": 0.5, "set1_val_wer": 0.5}, "min_delta": 100.0}, "trained"),
        ({"keep": lambda merged, trained: merged["val_wer"] != trained["val_wer"]}, "merged"),
    ],
)  # fmt: skip
def test_the_rule_decides(home, tmp_path, settings, kept):
    model, merging = Tiny(sets=2), callback(home, tmp_path, **settings)
    fit(model, merging, steps=2)
    assert merging.outcomes[0].kept == kept
    assert same(load_file(tmp_path / "merged.safetensors"), weights_of(model)) == (kept == "trained")
    assert {path.name for path in tmp_path.iterdir()} == (
        {"merged.safetensors"}
        if kept == "trained"
        else {"merged.safetensors", "merged.safetensors.merge.yaml", "merged.safetensors.README.md"}
    )


def test_the_best_of_all_that_were_validated_is_kept(home, tmp_path):
    merging = callback(home, tmp_path, every_n_validations=1, overwrite=True)
    fit(Tiny(), merging, steps=8)
    scores = [min(outcome.merged["val_wer"], outcome.trained["val_wer"]) for outcome in merging.outcomes]
    best = None
    for outcome, score in zip(merging.outcomes, scores, strict=True):
        assert (outcome.kept is not None) == (best is None or score < best)
        best = score if best is None else min(best, score)
    fresh = Tiny()
    fresh.load_state_dict(load_file(tmp_path / "merged.safetensors"))
    x, y = data(1).tensors
    assert float((fresh.eval()(x) - y).square().mean()) == pytest.approx(min(scores), rel=1e-5)


def test_without_validation_data_it_merges_all_the_same_if_told_so(home, tmp_path):
    merging = callback(home, tmp_path, keep="merged", monitor=None)
    fit(Tiny(), merging, limit_val_batches=0)
    assert merging.outcomes[0].merged == {}
    assert (tmp_path / "merged.safetensors").is_file()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"experts": ["missing"]}, CheckpointError, "missing.safetensors"),
        ({"experts": ["broken"]}, PlanError, "NaN or infinite"),
        ({"experts": ["other"]}, PlanError, "'linear2.bias' is"),
        ({"method": "slerp", "scale": None, "experts": []}, PlanError, "needs 2 or more experts"),
        ({"rules": [{"match": "nothing"}]}, PlanError, "matches no tensor"),
        ({"output": "nowhere/merged.safetensors"}, OutputError, "does not exist; create it first"),
        ({"output": "merged.nemo"}, OutputError, "cannot be written in this format"),
        ({"monitor": "val_wr"}, ConfigError, "no metric 'val_wr'.*did you mean 'val_wer'"),
        ({"monitor": "train_loss"}, ConfigError, "no metric 'train_loss'"),
    ],
)
def test_what_cannot_work_is_said_before_the_first_step(home, tmp_path, monkeypatch, settings, error, message):
    monkeypatch.chdir(tmp_path)
    watch = Watch()
    with pytest.raises(error, match=message):
        fit(Tiny(), watch, callback(home, tmp_path, **settings), num_sanity_val_steps=2)
    assert not watch.seen
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{"limit_val_batches": 0}, {"loaders": []}])
def test_a_metric_needs_validation_data(home, tmp_path, options):
    options, model = dict(options), Tiny()
    loaders = options.pop("loaders", model.val_dataloader())
    model.val_dataloader = lambda: loaders
    with pytest.raises(ConfigError, match=r"validation data|validates nothing"):
        fit(model, callback(home, tmp_path), **options)


def test_an_output_that_exists_is_not_replaced(home, tmp_path):
    (tmp_path / "merged.safetensors").write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        fit(Tiny(), callback(home, tmp_path))
    assert (tmp_path / "merged.safetensors").read_text() == "precious"
    fit(Tiny(), callback(home, tmp_path, overwrite=True), steps=2)
    assert (tmp_path / "merged.safetensors").read_bytes()[:8] != b"precious"


def test_a_base_is_needed_by_methods_of_task_vectors(home, tmp_path):
    merging = MergeCallback(None, [home / "expert.safetensors"], "ties", output=tmp_path / "m.safetensors")
    with pytest.raises(PlanError, match="needs a base"):
        fit(Tiny(), merging)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "teis"}, "did you mean 'ties'"),
        ({"method": "ties", "scale": None, "density": 3}, "density"),
        ({"method": {"name": "ties", "density": 0.2}, "scale": 0.5, "denstiy": 0.1}, "did you mean 'density'"),
        ({"moniter": "val_wer"}, "did you mean 'monitor'"),
        ({"keep": "best"}, "keep='best' does not exist"),
        ({"mode": "least"}, "mode='least'"),
        ({"monitor": None}, "name it with monitor="),
        ({"min_delta": float("nan")}, "not a finite number"),
        ({"every_n_validations": 0}, "whole number from 1"),
        ({"at_end": False}, "nothing would ever be merged"),
        ({"weights": [1.0]}, "1 weights for 2 experts"),
        ({"vocabulary": "union"}, "more tokens"),
        ({"output": None}, "not a path"),
    ],
)
def test_bad_settings_are_refused_when_they_are_given(home, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        callback(home, tmp_path, **settings)


def test_a_merge_that_fails_does_not_end_the_training(home, tmp_path):
    """What exp_manager saves at the end is worth more; the error comes after it."""
    expert = tmp_path / "expert.safetensors"
    expert.write_bytes((home / "expert.safetensors").read_bytes())

    class Remove(Callback):
        ended = False

        def on_train_batch_start(self, trainer, module, batch, index):
            expert.unlink(missing_ok=True)

        def on_fit_end(self, trainer, module):
            Remove.ended = True

    merging = MergeCallback(home / "base.safetensors", [expert], "soup", output=tmp_path / "merged.safetensors")
    with pytest.raises(NemoMergeError, match=r"expert\.safetensors"):
        fit(Tiny(), merging, Remove())
    assert Remove.ended
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_training_goes_on(home, tmp_path):
    """The output of its first part is its own, and is only replaced by something better."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    first = callback(home, tmp_path, every_n_validations=1, at_end=False)
    fit(Tiny(), first, ModelCheckpoint(tmp_path / "run", save_last=True), steps=4, enable_checkpointing=True)
    second = callback(home, tmp_path, every_n_validations=1, at_end=False)
    fit(Tiny(), second, steps=8, ckpt_path=tmp_path / "run" / "last.ckpt")
    assert [outcome.step for outcome in second.outcomes][-2:] == [6, 8]  # Lightning validates step 4 again
    scores = [min(o.merged["val_wer"], o.trained["val_wer"]) for o in first.outcomes + second.outcomes]
    assert second.state_dict()["best"] == pytest.approx(min(scores))
