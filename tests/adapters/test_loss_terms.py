"""Terms of the loss in Lightning's own loop: once per optimiser step, whatever accumulates or runs in parallel."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nemo_merge.adapters import (
    StillBatchNorm,
    add_loss_term,
    inject_bayesian_lora,
    kl_divergence,
    remove_adapter,
    sampling,
)
from nemo_merge.errors import ConfigError
from tests.fixtures.lora import Net, settings, shaken

lightning = pytest.importorskip("lightning.pytorch")


class Task(lightning.LightningModule):
    """Regression of frames; what a training step returns differs between models."""

    def __init__(self, returns="tensor", rate=0.1):
        super().__init__()
        self.net, self.returns, self.rate = Net(), returns, rate

    def training_step(self, batch, batch_idx):
        loss = self.net(batch).square().mean()
        self.log("train_loss", loss)
        if self.returns == "nothing":
            return None
        return loss if self.returns == "tensor" else {"loss": loss, "more": 1}

    def configure_optimizers(self):
        return torch.optim.SGD([value for value in self.parameters() if value.requires_grad], self.rate)


def fit(task, size=4, accumulate=1, steps=1, **options):
    data = torch.randn(8, 7, 12, generator=torch.Generator().manual_seed(0))
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, accumulate_grad_batches=accumulate, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, **options,
    )  # fmt: skip
    trainer.fit(task, torch.utils.data.DataLoader(data, batch_size=size))
    return trainer


def penalty(model):
    return 0.5 * sum(value.square().sum() for value in model.parameters() if value.requires_grad)


@pytest.mark.parametrize("returns", ["tensor", "dict"])
def test_the_term_is_added_and_logged(returns):
    plain, task = Task(returns), Task(returns)
    handle = add_loss_term(task, "l2", penalty)
    size = float(penalty(task).detach())
    for model in (plain, task):
        trainer = fit(model)
    assert float(trainer.callback_metrics["train_l2"]) == pytest.approx(size)
    # One step of gradient descent: the term's gradient is the weights themselves.
    start = Task()
    for name, value in task.named_parameters():
        expected = plain.get_parameter(name) - task.rate * start.get_parameter(name)
        torch.testing.assert_close(value, expected)
    handle.remove()
    handle.remove()
    assert "training_step" not in vars(task)
    assert "train_l2" not in fit(task).callback_metrics


def test_several_terms_and_skipped_batches():
    task = Task("nothing")
    first = add_loss_term(task, "one", penalty)
    second = add_loss_term(task, "two", penalty)
    assert task.training_step(torch.zeros(1, 2, 12), 0) is None
    task.returns = "tensor"
    both = task.training_step(torch.zeros(1, 2, 12), 0)
    first.remove()
    one = task.training_step(torch.zeros(1, 2, 12), 0)
    torch.testing.assert_close(both - one, penalty(task))
    twin = copy.deepcopy(task)
    for value in twin.parameters():
        nn.init.zeros_(value)
    assert float(twin.training_step(torch.zeros(1, 2, 12), 0)) == 0  # a copy looks at its own weights
    second.remove()
    assert "training_step" not in vars(task)


@pytest.mark.parametrize(("size", "accumulate"), [(8, 1), (4, 2), (2, 4)])
def test_accumulation_does_not_count_the_divergence_again(size, accumulate):
    task = Task()
    inject_bayesian_lora(
        task, settings(beta=2.0, target_modules=r"net\.layers\.\d+\.linear_q", beta_schedule="constant")
    )
    shaken(task)
    whole = copy.deepcopy(task)
    data = torch.randn(8, 7, 12, generator=torch.Generator().manual_seed(0))
    with sampling(whole, False), sampling(task, False):
        (whole.net.train()(data).square().mean() + 2.0 * kl_divergence(whole)).backward()
        fit(task, size, accumulate)
    for name, value in whole.named_parameters():
        if value.requires_grad:
            torch.testing.assert_close(task.get_parameter(name), value - task.rate * value.grad, rtol=1e-4, atol=1e-6)


def test_the_schedule_follows_the_optimiser_steps():
    task = Task(rate=1e-3)
    inject_bayesian_lora(
        task, settings(target_modules=["linear_q"], beta=1.0, beta_schedule="linear", beta_warmup_steps=10)
    )
    seen = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            values = {key: float(value) for key, value in trainer.callback_metrics.items()}
            seen.append(values["kl_beta"])
            assert values["train_kl"] == pytest.approx(values["kl_beta"] * values["kl_divergence"], rel=1e-5)

    fit(task, size=2, accumulate=2, steps=4, callbacks=[Watch()])
    assert seen == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3])


def test_training_in_16_bits_keeps_posteriors_in_float32():
    task = Task(rate=1e-3)
    inject_bayesian_lora(task, settings(target_modules=["linear_q"]))
    rho = task.net.layers[0].linear_q.lora_rho_A["default"]
    before = rho.detach().clone()
    fit(task, steps=3, precision="bf16-true")
    assert {value.dtype for name, value in task.named_parameters() if "lora_" in name} == {torch.float32}
    assert task.net.head.weight.dtype == torch.bfloat16
    assert rho is task.net.layers[0].linear_q.lora_rho_A["default"]
    assert (rho != before).float().mean() > 0.3  # the smallest steps are below the grid of float32 too
    assert (rho - before).abs().max() < 0.02  # less than bfloat16 can tell apart at -5


def test_the_callback_keeps_statistics_still_during_fit():
    task = Task().requires_grad_(False)
    task.net.head.requires_grad_(True)
    before = copy.deepcopy(task.state_dict())
    fit(task, steps=2, callbacks=[StillBatchNorm("net.layers")])
    after = task.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if "norm" in name)
    fit(task, steps=2)
    assert not any(torch.equal(task.state_dict()[name], before[name]) for name in before if "running" in name)


def test_bad_input():
    task = Task()
    with pytest.raises(ConfigError, match="Net has no training_step; give a LightningModule"):
        add_loss_term(task.net, "l2", penalty)
    with pytest.raises(ConfigError, match="letters, digits and underscores"):
        add_loss_term(task, "l 2", penalty)
    add_loss_term(task, "l2", penalty)
    with pytest.raises(ConfigError, match="the loss has a term 'l2' already"):
        add_loss_term(task, "l2", penalty)
    task = Task()
    task.automatic_optimization = False
    with pytest.raises(ConfigError, match="an optimisation loop of its own"):
        inject_bayesian_lora(task, settings(target_modules=["linear_q"]))
    assert task.state_dict().keys() == Task().state_dict().keys()
    task = Task()
    inject_bayesian_lora(task, settings(target_modules=["linear_q"]), "news-1")
    assert list(vars(task)["training_step"].terms) == ["kl_news_1"]
    remove_adapter(task, "news-1")
    assert "training_step" not in vars(task)
    add_loss_term(task, "wrong", lambda model: torch.zeros(2))
    with pytest.raises(ConfigError, match=r"'wrong' is a tensor of shape \[2\], not a tensor with one value"):
        task.training_step(torch.zeros(1, 2, 12), 0)


DDP = """
import sys, torch
import lightning.pytorch as lightning
from tests.adapters.test_loss_terms import Task
from tests.fixtures.lora import settings, shaken
from nemo_merge.adapters import inject_bayesian_lora
task = Task()
inject_bayesian_lora(task, settings(beta=2.0, target_modules=r"net\\.layers\\.\\d+\\.linear_q"))
shaken(task)
for module in task.modules():
    module.sampling = False
data = torch.randn(8, 7, 12, generator=torch.Generator().manual_seed(0))
options = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
devices = int(sys.argv[1])
trainer = lightning.Trainer(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_steps=1, **options)
trainer.fit(task, torch.utils.data.DataLoader(data, batch_size=8 // devices))
if trainer.is_global_zero:
    torch.save(task.state_dict(), sys.argv[2])
"""


@pytest.mark.slow
def test_ranks_do_not_add_up(tmp_path):
    (tmp_path / "train.py").write_text(DDP)
    for devices in (1, 2):
        command = [sys.executable, str(tmp_path / "train.py"), str(devices), str(tmp_path / f"{devices}.pt")]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=Path(__file__).parents[2], env=_environment()
        )
        assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"{devices}.pt") for devices in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)


def _environment():
    import os

    root = str(Path(__file__).parents[2])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
