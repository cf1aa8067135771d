"""PEFT adapters: the bound expert equals what PEFT's ``merge_and_unload`` makes; what is wrong with one is said."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_merge import open_checkpoint
from nemo_merge.checkpoints import AdapterCheckpoint, StateDictCheckpoint
from nemo_merge.errors import CheckpointError, ConfigError
from tests.fixtures.adapters import Model, lora_folder, randomise

peft = pytest.importorskip("peft")

LINEAR = ["linear_q", "linear_out"]
KINDS = {
    "linear": {"target_modules": LINEAR},
    "alpha": {"target_modules": LINEAR, "lora_alpha": 5},
    "rank-stabilised": {"target_modules": LINEAR, "use_rslora": True},
    "patterns": {
        "target_modules": LINEAR,
        "rank_pattern": {r"layers\.1\.linear_q": 2, "linear_out": 5},
        "alpha_pattern": {"layers.0.linear_q": 7},
    },
    "pointwise": {"target_modules": ["pointwise"]},
    "convolutions": {"target_modules": ["conv", "conv2d", "linear_q"]},
    "embedding": {"target_modules": ["embed", "linear_q"]},
    "whole modules": {"target_modules": LINEAR, "modules_to_save": ["head", "norm"]},
    "biases": {"target_modules": LINEAR, "bias": "all"},
    "bias of B": {"target_modules": ["linear_q"], "lora_bias": True},
    "DoRA": {"target_modules": LINEAR, "use_dora": True},
    "DoRA of convolutions and embedding": {"target_modules": ["conv", "conv2d", "embed"], "use_dora": True},
}


def bound(tmp_path, base):
    return AdapterCheckpoint(tmp_path / "adapter").bind(StateDictCheckpoint(base, "base"))


def saved(tmp_path, config, seed=0):
    """An adapter saved by PEFT: the base's state dict, and that of PEFT's own merge."""
    model = Model()
    base = copy.deepcopy(model.state_dict())
    wrapped = peft.get_peft_model(model, config)
    randomise(wrapped, seed)
    wrapped.save_pretrained(tmp_path / "adapter")
    return base, wrapped.merge_and_unload().state_dict()


def check(expert, merged):
    assert expert.keys() == merged.keys()
    for name, tensor in merged.items():
        assert expert[name].dtype == tensor.dtype
        torch.testing.assert_close(
            expert[name], tensor, rtol=2e-6, atol=2e-7, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_lora_is_what_peft_merges(tmp_path, kind):
    base, merged = saved(tmp_path, peft.LoraConfig(r=4, **KINDS[kind]))
    expert = bound(tmp_path, base)
    check(expert, merged)
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == set(expert.changes)
    for name in expert.changes:
        factors = expert.low_rank(name)
        assert (factors is None) == ("DoRA" in kind or base[name].dim() < 2 or "head" in name)
        if factors is not None:
            torch.testing.assert_close(factors.rows().view(base[name].shape).float(), merged[name] - base[name], atol=1e-6, rtol=1e-5)  # fmt: skip


@pytest.mark.parametrize("feedforward", [["linear_out", "conv2d"], []])
def test_ia3_is_what_peft_merges(tmp_path, feedforward):
    targets = ["linear_q", "linear_out", "conv2d"]
    base, merged = saved(tmp_path, peft.IA3Config(target_modules=targets, feedforward_modules=feedforward))
    expert = bound(tmp_path, base)
    check(expert, merged)
    assert expert.low_rank("encoder.conv2d.weight") is None


def test_transposed_layers(tmp_path):
    from transformers.pytorch_utils import Conv1D

    model = torch.nn.Sequential()
    model.add_module("c_attn", Conv1D(20, 12))
    for dora in (False, True):
        copied = copy.deepcopy(model)
        base = copy.deepcopy(copied.state_dict())
        config = peft.LoraConfig(r=3, target_modules=["c_attn"], fan_in_fan_out=True, use_dora=dora)
        wrapped = peft.get_peft_model(copied, config)
        randomise(wrapped)
        wrapped.save_pretrained(tmp_path / "adapter")
        check(bound(tmp_path, base), wrapped.merge_and_unload().state_dict())


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_names_without_prefix_are_found_in_the_base(tmp_path, named, suffix):
    """What inject_adapter_in_model(model.encoder) leaves: names that start inside the encoder, maybe with the adapter's."""
    model = Model()
    base = copy.deepcopy(model.state_dict())
    config = peft.LoraConfig(r=4, target_modules=LINEAR)
    peft.inject_adapter_in_model(config, model.encoder, adapter_name="es")
    randomise(model.encoder)
    tensors = peft.get_peft_model_state_dict(model.encoder, adapter_name="es")
    if named:
        tensors = {name.replace(".weight", ".es.weight"): tensor for name, tensor in tensors.items()}
    config.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / f"adapter_model.{suffix}"
    save_file(tensors, file) if suffix == "safetensors" else torch.save(tensors, file)
    for module in list(model.encoder.modules()):
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            module.merge()
    merged = {name.replace(".base_layer", ""): t for name, t in model.state_dict().items() if "lora_" not in name}
    check(bound(tmp_path, base), merged)
    assert isinstance(open_checkpoint(file), AdapterCheckpoint)


def matrices(rank=2, *modules):
    return {module: (torch.randn(6, rank), torch.randn(rank, 4)) for module in modules or ("encoder.layers.0.q",)}


BASE = {
    "encoder.layers.0.q.weight": torch.randn(6, 4),
    "encoder.layers.0.q.bias": torch.randn(6),
    "decoder.layers.0.q.weight": torch.randn(6, 4),
}


def test_unchanged_tensors_are_those_of_the_base(tmp_path):
    lora_folder(tmp_path / "adapter", matrices())
    expert = bound(tmp_path, BASE)
    name = "decoder.layers.0.q.weight"
    assert expert[name].data_ptr() == BASE[name].data_ptr()
    assert not expert.low_rank(name)
    assert expert.low_rank("encoder.layers.0.q.weight")


def test_a_base_of_16_bits_does_not_round_the_change(tmp_path):
    lora_folder(tmp_path / "adapter", {"encoder.layers.0.q": (1e-5 * torch.randn(6, 2), torch.randn(2, 4))})
    base = {name: tensor.half() for name, tensor in BASE.items()}
    expert = bound(tmp_path, base)
    name = "encoder.layers.0.q.weight"
    assert expert[name].dtype == expert.specs[name].dtype == torch.float32
    assert not torch.equal(expert[name], base[name].float())
    assert expert.specs["decoder.layers.0.q.weight"].dtype == torch.float16


def test_an_ambiguous_name_is_an_error_that_names_both(tmp_path):
    lora_folder(tmp_path / "adapter", matrices(2, "layers.0.q"))
    with pytest.raises(
        CheckpointError, match=r"'decoder.layers.0.q.weight' or for 'encoder.layers.0.q.weight'.*prefix: decoder"
    ):
        bound(tmp_path, BASE)
    adapter = open_checkpoint(tmp_path / "adapter", prefix="encoder.")
    assert set(adapter.bind(StateDictCheckpoint(BASE)).changes) == {"encoder.layers.0.q.weight"}
    with pytest.raises(ConfigError, match="for PEFT adapters only"):
        open_checkpoint(tmp_path, prefix="encoder.")


def test_other_tensors_decide_where_one_fits_twice(tmp_path):
    base = {**BASE, "encoder.layers.0.k.weight": torch.randn(6, 4)}
    lora_folder(tmp_path / "adapter", matrices(2, "layers.0.q", "layers.0.k"))
    assert set(bound(tmp_path, base).changes) == {"encoder.layers.0.q.weight", "encoder.layers.0.k.weight"}


def test_tied_tensors_change_together(tmp_path):
    shared = torch.randn(6, 4)
    base = {"embed.weight": shared, "out.weight": shared}
    lora_folder(tmp_path / "adapter", matrices(2, "out"))
    expert = bound(tmp_path, base)
    assert torch.equal(expert["embed.weight"], expert["out.weight"])
    assert not torch.equal(expert["embed.weight"], shared)
    lora_folder(tmp_path / "adapter", matrices(2, "out", "embed"))
    with pytest.raises(CheckpointError, match="twice"):
        bound(tmp_path, base)


MODULE = "base_model.model.encoder.layers.0.q"
BROKEN = {
    "no tensors": (lambda t: t.clear(), {}, "holds no tensor"),
    "only one factor": (lambda t: t.pop(f"{MODULE}.lora_B.weight"), {}, "lora_A.weight' but no lora_B"),
    "another rank": (lambda t: None, {"r": 3}, "of rank 2, but adapter_config.json gives rank 3"),
    "not finite": (lambda t: t[f"{MODULE}.lora_A.weight"].fill_(float("nan")), {}, "lora_A.weight' holds values that are NaN"),
    "another base": (lambda t: t.update({f"{MODULE}.lora_A.weight": torch.ones(2, 5)}), {}, r"\[6, 5\], but it is \[6, 4\]"),
    "sharded": (lambda t: t.update({f"{MODULE}.lora_A.weight": torch.ones(0)}), {}, "gather its weights"),
    "no product": (lambda t: t.update({f"{MODULE}.lora_B.weight": torch.ones(6, 3)}), {}, "do not multiply"),
    "grouped": (
        lambda t: t.update({f"{MODULE}.lora_A.weight": torch.ones(2, 4, 3), f"{MODULE}.lora_B.weight": torch.ones(6, 1, 1)}),
        {}, "grouped convolution",
    ),
    "no such tensor": (lambda t: t.update({"base_model.model.x.weight": torch.ones(2)}), {}, "'x.weight', which base does not have"),
    "two adapters": (
        lambda t: t.update({f"{MODULE}.lora_A.a.weight": torch.ones(2, 4), f"{MODULE}.lora_A.b.weight": torch.ones(2, 4)}),
        {}, r"several adapters \(a, b\)",
    ),
    "strange tensor": (lambda t: t.update({f"{MODULE}.lora_E.default": torch.ones(2)}), {}, "'lora_E' is no part"),
    "integers": (lambda t: t.update({f"{MODULE}.lora_A.weight": torch.ones(2, 4).long()}), {}, "not a floating-point type"),
    "magnitudes": (lambda t: t.update({f"{MODULE}.lora_magnitude_vector": torch.ones(5)}), {"use_dora": True}, "5 entries for 6 outputs"),
    "no magnitudes": (lambda t: None, {"use_dora": True}, "no lora_magnitude_vector"),
    "prefix tuning": (lambda t: None, {"peft_type": "PREFIX_TUNING"}, "prompts and prefixes are inputs"),
    "PiSSA": (lambda t: None, {"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
    "QA-LoRA": (lambda t: None, {"use_qalora": True}, "use_qalora is set"),
    "rank 0": (lambda t: None, {"r": 0}, "r=0 is not a whole number"),
    "alpha": (lambda t: None, {"lora_alpha": "x"}, "lora_alpha='x' is not a finite number"),
    "pattern": (lambda t: None, {"rank_pattern": {"(": 2}}, "not a regular expression"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_said(tmp_path, case):
    break_it, settings, message = BROKEN[case]
    folder = lora_folder(tmp_path / "adapter", matrices())
    tensors = load_file(folder / "adapter_model.safetensors")
    break_it(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}))
    with pytest.raises(CheckpointError, match=message) as caught:
        bound(tmp_path, BASE)
    assert str(folder) in str(caught.value)


def test_an_adapter_without_its_files(tmp_path):
    folder = lora_folder(tmp_path / "adapter", matrices())
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        AdapterCheckpoint(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="incomplete"):
        AdapterCheckpoint(folder)
    (folder / "adapter_config.json").write_text("[")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        AdapterCheckpoint(folder)


def test_the_adapter_alone_shows_its_tensors(tmp_path):
    folder = lora_folder(tmp_path / "adapter", matrices())
    with open_checkpoint(folder) as adapter:
        assert adapter.metadata.format == "adapter"
        assert {spec.shape for spec in adapter.specs.values()} == {(6, 2), (2, 4)}
        assert {path.name for path in adapter.files} == {"adapter_model.safetensors", "adapter_config.json"}
        assert adapter.details["adapter"]["lora_alpha"] == 2
