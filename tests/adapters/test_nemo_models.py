"""Adapters in real NeMo models of every kind: a stock trainer trains them, and what is saved is restored without us."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nemo_merge import open_checkpoint
from nemo_merge.adapters import (
    inject_bayesian_lora,
    inject_lora,
    load_adapter,
    merge_adapter,
    remove_adapter,
    sampling,
    save_adapter,
)
from tests.fixtures.lora import settings, shaken

pytestmark = pytest.mark.nemo
KINDS = ("ctc", "rnnt", "hybrid", "attention")


@pytest.fixture(scope="module")
def nemo_models():
    pytest.importorskip("nemo.collections.asr")
    torch.set_num_threads(1)
    from tests.fixtures import nemo_models

    return nemo_models


@pytest.fixture
def build(nemo_models, tmp_path_factory):
    """Makes a tiny model of a kind."""
    folder = tmp_path_factory.mktemp("tokenizers")

    def make(kind: str, seed: int = 0) -> Any:
        if kind == "ctc":
            return nemo_models.ctc(seed)
        if kind == "attention":
            return nemo_models.attention(folder, seed)
        model = nemo_models.hybrid(folder, seed)
        if kind == "hybrid":
            return model
        from nemo.collections.asr.models import EncDecRNNTBPEModel
        from omegaconf import OmegaConf

        config = {
            key: value for key, value in OmegaConf.to_container(model.cfg).items() if key not in ("aux_ctc", "target")
        }
        torch.manual_seed(seed)
        return EncDecRNNTBPEModel(cfg=OmegaConf.create(config))

    return make


def batches(kind: str, count: int = 3) -> list[Any]:
    """Noise with random transcripts, as the model's own data set gives them."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        audio, lengths = 0.1 * torch.randn(2, 8000, generator=generator), torch.tensor([8000, 6400])
        text, text_lengths = torch.randint(3, 20, (2, 5), generator=generator), torch.tensor([5, 4])
        if kind == "attention":
            from nemo.collections.asr.data.audio_to_text_lhotse_prompted import PromptedAudioToTextMiniBatch

            prompt, prompt_lengths = text[:, :2], torch.tensor([2, 2])
            made.append(
                PromptedAudioToTextMiniBatch(
                    audio, lengths, text, text_lengths, prompt, prompt_lengths,
                    torch.cat([prompt, text], dim=1), text_lengths + 2,
                )
            )  # fmt: skip
        else:
            made.append((audio, lengths, text, text_lengths))
    return made


def fit(model: Any, kind: str, steps: int = 2, callbacks: Any = (), ckpt_path: Any = None, count: int = 3) -> Any:
    import lightning.pytorch as lightning

    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, callbacks=list(callbacks), log_every_n_steps=10**6, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    model.set_trainer(trainer)
    trainer.fit(model, torch.utils.data.DataLoader(batches(kind, count), batch_size=None), ckpt_path=ckpt_path)
    return trainer


def encoded(model: Any) -> torch.Tensor:
    """The encoder's outputs for some noise."""
    audio = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(5))
    model.eval()
    with torch.no_grad():
        features, lengths = model.preprocessor(input_signal=audio, length=torch.tensor([8000, 6400]))
        return model.encoder(audio_signal=features, length=lengths)[0]


def restored(path: Any) -> Any:
    from nemo.collections.asr.models import ASRModel

    return ASRModel.restore_from(str(path), map_location="cpu")


def watch(seen: list[dict[str, float]]) -> Any:
    import lightning.pytorch as lightning

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            seen.append({key: float(value) for key, value in trainer.callback_metrics.items()})
            seen[-1]["loss"] = float(outputs["loss"])

    return Watch()


@pytest.mark.parametrize("kind", KINDS)
def test_a_stock_trainer_trains_it(build, kind, tmp_path):
    model = build(kind)
    keys = list(model.state_dict())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = inject_bayesian_lora(model, settings(target_modules=None, beta=0.25, sigma_b=1e-4))
    assert len(names) == 8
    assert all("self_attn.linear_" in name for name in names)
    start = {name: value.clone() for name, value in model.named_parameters() if value.requires_grad}
    seen: list[dict[str, float]] = []
    trainer = fit(model, kind, callbacks=[watch(seen)])

    assert len(seen) == 2
    for metrics in seen:
        assert metrics["train_kl"] == pytest.approx(0.25 * metrics["kl_divergence"], rel=1e-5)
        assert metrics["loss"] == pytest.approx(metrics["train_loss"] + metrics["train_kl"], rel=1e-5)
    groups = trainer.optimizers[0].param_groups
    assert [len(group["params"]) for group in groups] == [16, 16]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert not any(torch.equal(model.get_parameter(name), value) for name, value in start.items())
    plain = {
        name.replace(".base_layer", ""): value for name, value in model.state_dict().items() if "lora_" not in name
    }
    assert all(torch.equal(plain[name], value) for name, value in before.items())  # statistics too

    expected = encoded(model)
    model.save_to(str(tmp_path / "merged.nemo"))
    assert torch.equal(encoded(model), expected)
    again = restored(tmp_path / "merged.nemo")
    assert list(again.state_dict()) == keys
    torch.testing.assert_close(encoded(again), expected, rtol=1e-4, atol=1e-5)
    save_adapter(model, tmp_path / "adapter")
    merge_adapter(model)
    assert list(model.state_dict()) == keys
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())

    base = build(kind, seed=1)
    base.load_state_dict(before)
    load_adapter(base, tmp_path / "adapter", trainable=True)
    assert torch.equal(encoded(base), expected)
    remove_adapter(base)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert {"training_step", "save_to", "state_dict", "setup_optimizer_param_groups"} & set(vars(base)) == {"training_step"}  # NeMo's own  # fmt: skip


def test_saving_without_the_adapter(build, tmp_path):
    model = build("ctc")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inject_lora(model, r=2, nemo_file="strip", lora_dropout=0.0)
    shaken(model)
    model.save_to(str(tmp_path / "base.nemo"))
    saved = open_checkpoint(tmp_path / "base.nemo")
    assert list(saved) == list(before)
    assert all(torch.equal(saved[name], value) for name, value in before.items())
    assert "state_dict" not in vars(model)


def test_groups_of_the_configuration_stay(build):
    from omegaconf import OmegaConf, open_dict

    model = build("ctc")
    inject_bayesian_lora(model, settings(target_modules=None, rho_learning_rate=0.5))
    model.decoder.requires_grad_(True)
    with open_dict(model.cfg):
        model.cfg.optim_param_groups = OmegaConf.create({"encoder": {"lr": 0.25}})
    optimiser, _ = model.setup_optimization()
    assert [(len(group["params"]), group["lr"]) for group in optimiser.param_groups] == [
        (2, 1e-3),
        (16, 0.25),
        (8, 0.5),
    ]


def test_a_checkpoint_resumes(build, tmp_path):
    """Two steps and one more are the three steps of one run, to the bit, as long as nothing is drawn."""
    whole, first, second = (build("ctc") for _ in range(3))
    for model in (whole, first, second):
        torch.manual_seed(0)
        inject_bayesian_lora(model, settings(target_modules=None, beta_schedule="linear", beta_warmup_steps=3))
    with sampling(whole, False), sampling(first, False), sampling(second, False):
        fit(whole, "ctc", steps=3, count=1)
        fit(first, "ctc", steps=2, count=1).save_checkpoint(tmp_path / "last.ckpt")
        assert fit(second, "ctc", steps=3, count=1, ckpt_path=tmp_path / "last.ckpt").global_step == 3
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


@pytest.mark.slow
def test_experiment_manager(build, tmp_path):
    """The checkpoints of ``exp_manager`` hold the adapter, its ``.nemo`` does not."""
    import lightning.pytorch as lightning
    from nemo.utils.exp_manager import exp_manager

    model = build("ctc")
    keys = list(model.state_dict())
    inject_bayesian_lora(model, settings(target_modules=None))
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_steps=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, val_check_interval=3, num_sanity_val_steps=0,
    )  # fmt: skip
    exp_manager(
        trainer,
        {
            "explicit_log_dir": str(tmp_path), "seconds_to_sleep": 0, "create_tensorboard_logger": False,
            "create_checkpoint_callback": True, "name": "adapted",
            "checkpoint_callback_params": {"monitor": "train_loss", "mode": "min", "save_top_k": 1, "always_save_nemo": True, "every_n_train_steps": 1, "every_n_epochs": 0},
        },
    )  # fmt: skip
    model.set_trainer(trainer)
    trainer.fit(model, torch.utils.data.DataLoader(batches("ctc"), batch_size=None))
    (nemo,) = tmp_path.glob("**/*.nemo")
    assert list(open_checkpoint(nemo)) == keys
    torch.testing.assert_close(encoded(restored(nemo)), encoded(model), rtol=1e-4, atol=1e-5)
    (last, *_) = tmp_path.glob("**/*last.ckpt")
    assert any("lora_rho_A" in name for name in torch.load(last, weights_only=False)["state_dict"])
