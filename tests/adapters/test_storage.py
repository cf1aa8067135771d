"""Adapters on disk: PEFT reads them, they resume to the bit, and what does not fit is refused."""

from __future__ import annotations

import json
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_merge import open_checkpoint
from nemo_merge.adapters import (
    export_mean_adapter,
    inject_bayesian_lora,
    inject_lora,
    load_adapter,
    merge_adapter,
    parameter_groups,
    save_adapter,
)
from nemo_merge.errors import CheckpointError, ConfigError, OutputError
from tests.fixtures.lora import QV, Net, bayesian, frames, outputs, settings, shaken

VARIANTS = [
    {},
    {"use_rslora": True},
    {"rank_pattern": {"linear_v": 5}, "alpha_pattern": {"linear_v": 3}},
    {"sigma_b": "same", "init_lora_weights": "gaussian"},
]


@pytest.mark.parametrize("options", VARIANTS)
def test_plain_peft_computes_the_same(tmp_path, options):
    net = bayesian(**options).eval()
    expected = outputs(net)
    save_adapter(net, tmp_path / "full")
    export_mean_adapter(net, tmp_path / "mean")
    ends = {name.rpartition(".lora_")[2] for name in load_file(tmp_path / "mean" / "adapter_model.safetensors")}
    assert ends == {"A.weight", "B.weight"}
    ends = {name.rpartition(".lora_")[2] for name in load_file(tmp_path / "full" / "adapter_model.safetensors")}
    assert ends == {"A.weight", "B.weight", "rho_A", *(["rho_B"] if "sigma_b" in options else [])}
    assert not (tmp_path / "mean" / "bayesian_lora.json").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for folder in ("mean", "full"):
            model = peft.PeftModel.from_pretrained(Net(), str(tmp_path / folder)).eval()
            assert torch.equal(outputs(model), expected)
    merged = model.merge_and_unload()
    torch.testing.assert_close(outputs(merged), expected, rtol=1e-5, atol=1e-5)
    merge_adapter(net)
    assert all(torch.equal(value, merged.state_dict()[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("options", VARIANTS)
def test_training_goes_on_to_the_bit(tmp_path, options):
    def train(net, steps, seed):
        torch.manual_seed(seed)
        optimiser = torch.optim.SGD(parameter_groups(net), lr=1e-3)
        net.train()
        for _ in range(steps):
            optimiser.zero_grad()
            net(frames()).square().mean().backward()
            optimiser.step()

    net = bayesian(estimator="lrt", beta=0.25, kl_reduction="elbo", tokens=1e4, **options)
    train(net, 2, 0)
    save_adapter(net, tmp_path / "adapter")
    again = Net()
    load_adapter(again, tmp_path / "adapter", trainable=True)
    assert again.layers[0].linear_q.posteriors["default"].tokens == 1e4
    for model in (net, again):
        train(model, 2, 1)
    for name, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_loading_for_use(tmp_path):
    net = bayesian().eval()
    save_adapter(net, tmp_path / "full")
    for posteriors in (None, True, False):
        again = Net().eval()
        load_adapter(again, tmp_path / "full", posteriors=posteriors)
        assert torch.equal(outputs(again), outputs(net))
        assert not any(value.requires_grad for value in again.parameters())
        assert any("rho" in name for name in again.state_dict()) == (posteriors is not False)
    inject_lora(again, r=2, target_modules=QV, adapter_name="other")
    with pytest.raises(ConfigError, match="no adapter 'ohter'"):
        save_adapter(again, tmp_path / "other", "ohter")
    save_adapter(again, tmp_path / "other")
    assert json.loads((tmp_path / "other" / "adapter_config.json").read_text())["r"] == 2


def test_a_merge_reads_the_means(tmp_path):
    save_adapter(bayesian(), tmp_path / "full")
    export_mean_adapter(bayesian(), tmp_path / "mean")
    full, mean = (open_checkpoint(tmp_path / name) for name in ("full", "mean"))
    for name in mean.specs:
        assert torch.equal(full[name], mean[name])


def test_adapters_of_a_part_find_their_place(tmp_path):
    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = Net(), Net(layers=1)

    part = Net()
    inject_lora(part, r=2, target_modules=["linear_q"])
    shaken(part)
    save_adapter(part, tmp_path / "part")
    whole = Whole().eval()
    names = load_adapter(whole, tmp_path / "part")
    assert names == ["encoder.layers.0.linear_q", "encoder.layers.1.linear_q"]
    assert torch.equal(outputs(whole.encoder), outputs(part.eval()))


def test_nothing_is_overwritten_unasked(tmp_path):
    net = bayesian()
    save_adapter(net, tmp_path / "a")
    with pytest.raises(OutputError, match=r"a: exists; give overwrite=True or another folder"):
        export_mean_adapter(net, tmp_path / "a")
    assert (tmp_path / "a" / "bayesian_lora.json").exists()
    export_mean_adapter(net, tmp_path / "a", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        save_adapter(net, tmp_path / "file" / "b")


def broken(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


Q = "base_model.model.layers.0.linear_q"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: broken(folder, lambda t: t.pop(f"{Q}.lora_rho_A")), "lacks tensor 'layers.0.linear_q.lora_rho_A'"),
        (lambda folder: broken(folder, lambda t: t.update({f"{Q}.lora_rho_A": torch.zeros(3, 5)})), "does not have the shape of"),
        (lambda folder: broken(folder, lambda t: [t.pop(n) for n in list(t) if "layers.0.linear_q" in n]), "lacks tensor"),
        (lambda folder: broken(folder, lambda t: t.update({f"{Q}.lora_A.weight": torch.full((3, 12), float("nan"))})), "NaN"),
        (lambda folder: (folder / "bayesian_lora.json").write_text("{"), "bayesian_lora.json: not valid JSON"),
        (lambda folder: (folder / "bayesian_lora.json").write_text("[]"), "not a JSON object"),
        (lambda folder: (folder / "bayesian_lora.json").write_text('{"colour": 1}'), "setting 'colour' is unknown"),
        (lambda folder: (folder / "bayesian_lora.json").write_text('{"beta": -1}'), "bayesian_lora.json: beta=-1"),
        (lambda folder: (folder / "bayesian_lora.json").unlink(), r"has no posteriors \(no bayesian_lora.json\)"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "the adapter is incomplete"),
    ],
)  # fmt: skip
def test_damaged_adapters(tmp_path, damage, message):
    save_adapter(bayesian(), tmp_path / "a")
    damage(tmp_path / "a")
    net = Net()
    before = list(net.state_dict())
    with pytest.raises(CheckpointError, match=message):
        load_adapter(net, tmp_path / "a", posteriors=True)
    assert list(net.state_dict()) == before
    assert all(value.requires_grad for value in net.parameters())


def test_adapters_of_another_base(tmp_path):
    save_adapter(bayesian(), tmp_path / "a")
    export_mean_adapter(bayesian(), tmp_path / "mean")
    with pytest.raises(
        CheckpointError, match=r"'layers.1.linear_. ?.*<Net> does not have; is the adapter of this base"
    ):
        load_adapter(Net(layers=1), tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"as \[12, 12\], but it is \[16, 16\] in <Net>"):
        load_adapter(Net(width=16), tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"no posteriors \(no tensor lora_rho_A in adapter_model"):
        load_adapter(Net(), tmp_path / "mean", posteriors=True)
    with pytest.raises(ConfigError, match="Net has no adapter"):
        save_adapter(Net(), tmp_path / "b")
    model = Net()
    peft.inject_adapter_in_model(peft.LoHaConfig(r=2, target_modules=["linear_q"]), model)
    config = model.peft_config["default"]
    config.save_pretrained(str(tmp_path / "a"))
    with pytest.raises(CheckpointError, match="adapter of type"):
        load_adapter(Net(), tmp_path / "a")


def test_ranks_that_do_not_match_the_configuration(tmp_path):
    save_adapter(bayesian(), tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": 4}))
    with pytest.raises(CheckpointError, match=r"adapter_config|\[3, 12\]"):
        load_adapter(Net(), tmp_path / "a")


def test_settings_survive(tmp_path):
    config = settings(sigma_b=0.002, estimator="direct", beta_schedule="cosine", beta_warmup_steps=7, rho_init=(-6, -5))
    net = Net()
    inject_bayesian_lora(net, config)
    save_adapter(net, tmp_path / "a")
    again = Net()
    load_adapter(again, tmp_path / "a", trainable=True)
    loaded = again.layers[0].linear_q.posteriors["default"]
    assert {**vars(loaded), "target_modules": None} == {**vars(config), "target_modules": None}
