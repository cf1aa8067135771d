"""Interpolation toward a base during training."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("lightning")
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from nemo_merge.errors import ConfigError, NemoMergeError
from nemo_merge.hooks import ContinualMergeCallback
from nemo_merge.hooks._settings import check_whole_model
from tests.fixtures.lightning_models import Tiny, fit, weights_of, write_family
from tests.fixtures.models import same


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_family(tmp_path_factory.mktemp("home"))


class Around(Callback):
    """The weights before and after a callback that stands between two of these."""

    def __init__(self, into):
        self.into = into

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.into[trainer.global_step] = weights_of(module)


def interpolated(base, weights, c):
    return {
        name: base[name] + c * (value - base[name]) if value.is_floating_point() else value
        for name, value in weights.items()
    }


def close(a, b):
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-6, atol=1e-7)


def test_at_the_end_only_it_is_the_interpolation_of_the_trained_weights(home):
    model = Tiny()
    fit(model, ContinualMergeCallback())
    alone = load_file(home / "alone.safetensors")
    close(weights_of(model), interpolated(weights_of(Tiny()), alone, 0.25))
    assert not same(weights_of(model), alone)


@pytest.mark.parametrize(
    ("settings", "coefficient"),
    [
        ({"alpha": 0.9}, lambda step: 0.9),
        ({"schedule": "linear", "end": 0.5}, lambda step: 1 - 0.5 * step / 8),
        ({"schedule": "linear", "start": 0.8, "end": 0.2, "steps": 4}, lambda step: 0.8 - 0.6 * min(1, step / 4)),
        ({"schedule": "cosine", "end": 0.0}, lambda step: (1 + math.cos(math.pi * step / 8)) / 2),
    ],
)
def test_the_weights_follow_the_formula_and_training_goes_on_from_them(home, settings, coefficient):
    before, after = {}, {}
    base = load_file(home / "expert.safetensors")
    merging = ContinualMergeCallback(home / "expert.safetensors", every_n_steps=3, **settings)
    fit(Tiny(), Around(before), merging, Around(after))
    for step in before:
        c = coefficient(step) if step % 3 == 0 else 1.0
        close(after[step], interpolated(base, before[step], c))
        assert merging.coefficient(step) == pytest.approx(coefficient(step))
        assert (after[step]["batch_norm.running_var"] >= 0).all()
    assert same(after[8], before[8])  # at_end is off


def test_one_changes_nothing_and_zero_gives_the_base(home):
    model = Tiny()
    fit(model, ContinualMergeCallback(every_n_steps=1, alpha=1.0, at_end=True))
    assert same(weights_of(model), load_file(home / "alone.safetensors"))
    model = Tiny()
    fit(model, ContinualMergeCallback(home / "expert.safetensors", alpha=0.0))
    expert = load_file(home / "expert.safetensors")
    assert all(
        torch.equal(value, expert[name]) for name, value in weights_of(model).items() if value.is_floating_point()
    )


@pytest.mark.parametrize(
    ("settings", "untouched"),
    [
        ({"include": "linear1"}, {"linear2", "batch_norm"}),
        ({"exclude": [r"^linear2\."]}, {"linear2"}),
        ({"batch_norm": "keep"}, {"batch_norm.running"}),
        ({"include": ["linear", "batch_norm"], "exclude": "bias"}, {"linear1.bias", "linear2.bias", "batch_norm.bias"}),
    ],
)
def test_only_what_is_meant_is_changed(home, settings, untouched, caplog):
    model = Tiny()
    caplog.set_level("INFO", "nemo_merge")
    fit(model, ContinualMergeCallback(**settings))
    alone, start, after = load_file(home / "alone.safetensors"), weights_of(Tiny()), weights_of(model)
    for name, value in after.items():
        if value.is_floating_point():
            kept = any(name.startswith(part) for part in untouched)
            expected = alone[name] if kept else start[name] + 0.25 * (alone[name] - start[name])
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
    assert "left alone" in caplog.text


def test_statistics_of_the_base(home):
    model = Tiny()
    fit(model, ContinualMergeCallback(home / "expert.safetensors", batch_norm="base"))
    expert = load_file(home / "expert.safetensors")
    assert torch.equal(model.batch_norm.running_var, expert["batch_norm.running_var"])
    assert not torch.equal(model.linear1.weight, expert["linear1.weight"])


def test_half_precision_is_rounded_once(tmp_path):
    model = Tiny().bfloat16()
    base = {name: value.float() for name, value in weights_of(Tiny(1).bfloat16()).items()}
    save_file(base, tmp_path / "base.safetensors")
    trained = {}
    fit(
        model,
        Around(trained),
        ContinualMergeCallback(tmp_path / "base.safetensors", alpha=0.3),
        precision="bf16-true",
        steps=2,
    )
    for name in ("linear1.weight", "batch_norm.running_var"):
        exact = torch.lerp(base[name], trained[2][name].float(), 0.3)
        assert torch.equal(model.state_dict()[name], exact.bfloat16())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, "not between 0"),
        ({"alpha": True}, "not between 0"),
        ({"every_n_steps": 5}, "needs alpha="),
        ({"schedule": "linear"}, "to end=, which is needed"),
        ({"schedule": "cosine", "end": 0.5, "alpha": 0.5}, "not alpha="),
        ({"start": 0.5}, "takes alpha="),
        ({"schedule": "cubic"}, "schedule='cubic' does not exist"),
        ({"batch_norm": "pooled"}, "batch_norm='pooled' does not exist"),
        ({"at_end": False}, "nothing would ever be merged"),
        ({"include": ["("]}, "not a list of regular expressions"),
        ({"every_n_steps": 1.5, "alpha": 0.5}, "whole number from 1"),
    ],
)
def test_bad_settings_are_refused_when_they_are_given(settings, message):
    with pytest.raises(ConfigError, match=message):
        ContinualMergeCallback(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": "missing"}, "missing.safetensors"),
        ({"base": "broken"}, "NaN or infinite"),
        ({"base": "other"}, "another shape of 'linear2.bias'.*exclude="),
        ({"exclude": "linear3"}, "'linear3' matches no tensor"),
        ({"exclude": "."}, "leave no tensor"),
        ({"schedule": "linear", "end": 0.5, "every_n_steps": 1, "steps": None}, "max_steps"),
    ],
)
def test_what_cannot_work_is_said_before_the_first_step(home, settings, message):
    seen = {}
    if "base" in settings:
        settings = {**settings, "base": home / f"{settings['base']}.safetensors"}
    with pytest.raises(NemoMergeError, match=message):
        fit(Tiny(), Around(seen), ContinualMergeCallback(**settings), steps=-1 if "steps" in settings else 8)
    assert not seen


def test_a_base_of_another_shape_is_fine_where_it_is_left_out(home):
    fit(Tiny(), ContinualMergeCallback(home / "other.safetensors", exclude=r"linear2\.bias"), steps=2)


def test_going_on_needs_the_same_start(tmp_path):
    saver = ModelCheckpoint(tmp_path, save_last=True)
    fit(Tiny(), ContinualMergeCallback(), saver, steps=4, enable_checkpointing=True)
    fit(Tiny(), ContinualMergeCallback(), steps=6, ckpt_path=tmp_path / "last.ckpt")
    with pytest.raises(ConfigError, match="started from other weights"):
        fit(Tiny(seed=3), ContinualMergeCallback(), steps=6, ckpt_path=tmp_path / "last.ckpt")


def test_an_optimiser_with_weights_of_its_own_is_refused():
    """It would write its copies over what is merged, at the next step."""

    class Copies(Tiny):
        def configure_optimizers(self):
            return torch.optim.SGD(
                [parameter.detach().double().requires_grad_() for parameter in self.parameters()], lr=0.1
            )

    with pytest.raises(ConfigError, match="keeps copies of the weights"):
        fit(Copies(), ContinualMergeCallback(every_n_steps=1, alpha=0.5), steps=1)


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_strategies_that_spread_the_weights_are_refused(strategy):
    trainer = SimpleNamespace(strategy=strategy())
    with pytest.raises(ConfigError, match=strategy.__name__):
        check_whole_model(trainer, "ContinualMergeCallback")
