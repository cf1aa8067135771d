"""LoRA in torch and Hugging Face models: in and out again, default targets, still statistics, bad input."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch import nn

from nemo_merge.adapters import (
    default_targets,
    inject_lora,
    load_adapter,
    merge_adapter,
    parameter_groups,
    remove_adapter,
    save_adapter,
    still_batch_norm,
    use_parameter_groups,
)
from nemo_merge.errors import ConfigError, MergeError
from tests.fixtures.lora import QV, Net, frames, outputs, shaken


def adapted(**options):
    net = Net().eval()
    inject_lora(net, **{"r": 2, "target_modules": QV, **options})
    shaken(net)
    return net


def test_in_and_out_again():
    before = Net().eval()
    net = adapted()
    assert not torch.equal(outputs(net), outputs(before))
    remove_adapter(net)
    assert [(name, value.requires_grad) for name, value in net.named_parameters()] == [(name, True) for name, _ in before.named_parameters()]  # fmt: skip
    assert torch.equal(outputs(net), outputs(before))
    assert not hasattr(net, "peft_config")
    with pytest.raises(ConfigError, match="Net has no adapter"):
        merge_adapter(net)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_merging(options):
    net = adapted(**options)
    expected = outputs(net)
    merge_adapter(net)
    assert net.state_dict().keys() == Net().state_dict().keys()
    torch.testing.assert_close(outputs(net), expected, rtol=1e-5, atol=1e-5)
    assert all(value.requires_grad for value in net.parameters())


def test_a_broken_adapter_is_not_merged():
    net = adapted()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.layers[1].linear_v.lora_B["default"].weight.data[0, 0] = float("nan")
    with pytest.raises(MergeError, match=r"'layers.1.linear_v' holds NaN .*lora_B"):
        merge_adapter(net)
    assert sum(not torch.equal(value, before[name]) for name, value in net.state_dict().items()) == 1


def test_what_was_frozen_before_stays_frozen():
    net = Net()
    net.head.requires_grad_(False)
    inject_lora(net, r=2, target_modules=QV)
    remove_adapter(net)
    assert {name for name, value in net.named_parameters() if not value.requires_grad} == {"head.weight", "head.bias"}


def test_the_active_adapters_are_merged():
    net = adapted()
    one = outputs(net)
    inject_lora(net, adapter_name="second", r=4, target_modules=["linear_q"])
    assert torch.equal(outputs(net), outputs(Net().eval()))  # the second one is active, and new
    shaken(net, 0.2)
    expected = outputs(net)
    twin = copy.deepcopy(net)
    merge_adapter(net)
    torch.testing.assert_close(outputs(net), expected, rtol=1e-5, atol=1e-5)
    remove_adapter(twin, "second")
    assert torch.equal(outputs(twin), one)


def test_a_folder_of_peft(tmp_path):
    """What PEFT itself trains and saves is loaded, and the other way round."""
    config = peft.LoraConfig(r=2, target_modules=["linear_q"], use_dora=True)
    model = peft.get_peft_model(Net(), config)
    shaken(model)
    model.save_pretrained(str(tmp_path / "theirs"))
    net = Net().eval()
    load_adapter(net, tmp_path / "theirs")
    assert torch.equal(outputs(net), outputs(model.eval()))
    save_adapter(net, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(Net(), str(tmp_path / "ours")).eval()
    assert torch.equal(outputs(again), outputs(net))


def test_configurations():
    net = Net()
    inject_lora(net, peft.LoraConfig(r=2, target_modules=QV), r=5)
    assert net.layers[0].linear_q.lora_A["default"].weight.shape == (5, 12)
    other = Net()
    inject_lora(other, {"target_modules": QV})
    assert other.layers[0].linear_q.r == {"default": 32}
    assert other.layers[0].linear_q.scaling == {"default": 2.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 3}, "LoRA has no option 'rank'; did you mean"),
        ({"config": 3}, "config is a int, not a peft.LoraConfig"),
        ({"r": 0}, "rank r=0 is not a whole number"),
        ({"rank_pattern": {"linear_q": -1}}, "rank linear_q=-1"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changes the base's weights"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["head"]}, "modules_to_save is not supported"),
        ({"nemo_file": "keep"}, "nemo_file='keep'"),
        ({"adapter_name": ""}, "a name without dots"),
        ({"target_modules": ["q_proj"]}, "selects no module of Net"),
    ],
)
def test_bad_input(options, message):
    net = Net()
    with pytest.raises(ConfigError, match=message):
        inject_lora(net, **{"target_modules": QV, **options})
    assert net.state_dict().keys() == Net().state_dict().keys()
    assert all(value.requires_grad for value in net.parameters())


def test_a_part_that_has_adapters_already():
    whole = nn.Sequential(Net())
    inject_lora(whole[0], r=2, target_modules=QV)
    with pytest.raises(ConfigError, match="a part of Sequential has adapters already"):
        inject_lora(whole, r=2, target_modules=r"0\.layers\.\d+\.linear_q")
    with pytest.raises(ConfigError, match="give the very module"):
        merge_adapter(whole)


def test_whisper(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, num_mel_bins=8, max_source_positions=20, max_target_positions=12,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).eval()
    plain = copy.deepcopy(model)
    inputs = {"input_features": torch.randn(1, 8, 40), "decoder_input_ids": torch.tensor([[1, 5, 7]])}
    names = inject_lora(model, r=2)
    assert len(names) == 4 * 3  # encoder, decoder and their cross-attention
    assert len(inject_lora(copy.deepcopy(plain), r=2, target_modules=default_targets(plain, feed_forward=True))) == 16
    shaken(model)
    save_adapter(model, tmp_path / "a")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path / "a")).eval()
    with torch.no_grad():
        expected = model(**inputs).logits
        assert torch.equal(again(**inputs).logits, expected)
        merge_adapter(model)
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == plain.state_dict().keys()


def statistics(net):
    return {name: value.clone() for name, value in net.state_dict().items() if "running" in name or "tracked" in name}


def test_statistics_stay_still_whoever_calls_train():
    net = Net()
    inject_lora(net, r=2, target_modules=QV)
    before = statistics(net)
    net.train()
    net(frames()).sum().backward()
    for layer in net.layers:
        layer.norm.train()
    net(frames())
    assert all(torch.equal(value, before[name]) for name, value in statistics(net).items())
    assert net.layers[0].norm.training  # as the trainer left it
    remove_adapter(net)
    net.train()(frames())
    assert not any(torch.equal(value, before[name]) for name, value in statistics(net).items())


def test_statistics_move_where_the_layer_is_trained():
    net = Net().requires_grad_(False)
    handle = still_batch_norm(net)
    before = statistics(net)
    net(frames())
    assert all(torch.equal(value, before[name]) for name, value in statistics(net).items())
    net.layers[1].norm.requires_grad_(True)
    net(frames())
    moved = {name for name, value in statistics(net).items() if not torch.equal(value, before[name])}
    assert moved == {f"layers.1.norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    with pytest.raises(RuntimeError):
        net.layers[0].norm(torch.zeros(3, 5))
    assert net.layers[0].norm.training
    handle.remove()
    handle.remove()
    net(frames())
    assert not torch.equal(statistics(net)["layers.0.norm.running_mean"], before["layers.0.norm.running_mean"])


def test_statistics_may_be_left_alone():
    net = Net()
    inject_lora(net, r=2, target_modules=QV, still_batch_norm=False)
    before = statistics(net)
    net(frames())
    assert not any(torch.equal(value, before[name]) for name, value in statistics(net).items())


def test_parameter_groups_of_plain_models():
    net = adapted()
    groups = parameter_groups(net)
    assert len(groups) == 1
    assert len(groups[0]["params"]) == 8
    with pytest.raises(ConfigError, match="Net is not a NeMo model"):
        use_parameter_groups(net)
