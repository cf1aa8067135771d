"""Hugging Face encoders as upstreams: their own hidden states, whoever is beside an utterance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from nemo_merge.errors import CheckpointError, ConfigError
from nemo_merge.fusion import Upstream
from nemo_merge.fusion.sources import build, describe, load_weights
from tests.fixtures.speech_models import KINDS, write_speech_model
from tests.fixtures.whisper import SECONDS, write_whisper

ALL = ("whisper", *KINDS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {kind: write_speech_model(root / kind, kind) for kind in KINDS}
    return {**made, "whisper": write_whisper(root / "whisper")}


def upstream_of(folder: Path, **options) -> Upstream:
    entry = describe({"huggingface": str(folder), **options})
    upstream = build(json.loads(json.dumps(entry)))  # plain data
    load_weights(entry, upstream)
    return upstream.prepare()


def noise(*samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    audio = 0.1 * torch.randn(len(samples), max(samples))
    for row, count in enumerate(samples):
        audio[row, count:] = 99.0
    return audio, torch.tensor(samples)


@pytest.mark.parametrize("kind", ALL)
def test_layers_are_the_hidden_states_of_transformers(kind, folders):
    from transformers import AutoFeatureExtractor, AutoModel

    upstream = upstream_of(folders[kind])
    model, features = (
        AutoModel.from_pretrained(folders[kind]).eval(),
        AutoFeatureExtractor.from_pretrained(folders[kind]),
    )
    audio, lengths = noise(8000)
    layers, valid = upstream(audio, lengths)
    given = features(audio[0].numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        encode = model.encoder if kind == "whisper" else model
        output = encode(given["input_features" if kind == "whisper" else "input_values"], output_hidden_states=True)
        expected = [*output.hidden_states[:-1], output.last_hidden_state]  # which some versions leave without its norm
    assert len(layers) == len(expected) == upstream.num_layers
    frames = 25 if kind == "whisper" else 24  # one window of 25 ms less
    assert valid.tolist() == [frames]
    for layer, states in zip(layers, expected, strict=True):
        assert layer.shape == (1, upstream.dim, frames)
        assert torch.allclose(layer[0].T, states[0, :frames], atol=1e-4)
    assert (upstream.frame_shift, upstream.sample_rate, upstream.dim) == (0.02, 16000, 16)


@pytest.mark.parametrize("kind", ALL)
def test_an_utterance_does_not_know_who_is_beside_it(kind, folders):
    upstream = upstream_of(folders[kind])
    audio, lengths = noise(12000, 7000, 100)
    together, valid = upstream(audio, lengths)
    assert valid.tolist() == ([38, 22, 1] if kind == "whisper" else [37, 21, 1])
    for row, count in enumerate(lengths.tolist()):
        padded = torch.nn.functional.pad(audio[row : row + 1, :count], (0, 700), value=99.0)
        alone, own = upstream(padded, lengths[row : row + 1])
        assert own.tolist() == [valid[row]]
        for layer, single in zip(together, alone, strict=True):
            assert torch.allclose(layer[row, :, : own[0]], single[0], atol=1e-4)


def test_whisper_hears_long_audio_window_by_window(folders):
    upstream = upstream_of(folders["whisper"])
    window = SECONDS * 16000
    audio, lengths = noise(2 * window + 4000, window)
    layers, valid = upstream(audio, lengths)
    assert valid.tolist() == [213, 100]
    second, _ = upstream(audio[:1, window : 2 * window], torch.tensor([window]))
    assert torch.allclose(layers[-1][0, :, 100:200], second[-1][0], atol=1e-5)


@pytest.mark.parametrize("kind", ["hubert", "whisper"])
def test_a_merge_is_an_encoder(kind, folders, tmp_path):
    write = write_whisper if kind == "whisper" else lambda folder, seed: write_speech_model(folder, kind, seed)
    other = write(tmp_path / "other", 1)
    settings = {"experts": [str(folders[kind]), str(other)], "method": "soup"}
    (tmp_path / "merge.yaml").write_text(json.dumps(settings))
    entry = describe({"merge": str(tmp_path / "merge.yaml")})
    assert entry["provenance"]["merge"]["method"]["name"] == "soup"
    merged = build(entry)
    load_weights(entry, merged)
    own, first, second = (module.state_dict() for module in (merged, upstream_of(folders[kind]), upstream_of(other)))
    name = next(name for name in own if name.endswith("layers.0.final_layer_norm.weight"))
    linear = next(
        name for name in own if name.endswith(("layers.0.fc1.weight", "layers.0.feed_forward.output_dense.weight"))
    )
    for key in (name, linear):
        assert torch.allclose(own[key], (first[key] + second[key]) / 2, atol=1e-6)


def test_some_layers_in_another_precision(folders):
    audio, lengths = noise(8000)
    every, _ = upstream_of(folders["hubert"])(audio, lengths)
    some, _ = upstream_of(folders["hubert"], layers=[0, 3], precision="bf16")(audio, lengths)
    assert len(some) == 2
    assert all(layer.dtype == torch.float32 for layer in some)
    assert torch.allclose(some[1], every[3], atol=0.1)
    assert not torch.equal(some[1], every[3])


@pytest.mark.parametrize("kind", ["whisper", "wav2vec2", "wavlm", "data2vec-audio"])
def test_what_is_trained(kind, folders):
    pytest.importorskip("peft")
    audio, lengths = noise(8000)
    for how in ("frozen", "full", "lora"):
        upstream = upstream_of(folders[kind], train=how).train()
        layers, _ = upstream(audio, lengths)
        assert layers[-1].requires_grad == (how != "frozen")
        if how == "frozen":
            assert not any(module.training for module in upstream.modules())
            continue
        layers[-1].square().mean().backward()
        trained = {name for name, value in upstream.named_parameters() if value.grad is not None and value.grad.any()}
        assert trained
        if how == "lora":
            assert all(".lora_" in name for name in trained)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"huggingface": "{hubert}", "layers": [5]}, r"layers=\[5\] are not some of 0 to 3"),
        ({"huggingface": "{hubert}", "layers": [2, 1]}, "in order"),
        ({"huggingface": "{hubert}", "layers": []}, "no list of numbers"),
        ({"huggingface": "{hubert}", "train": "frozn"}, "did you mean 'frozen'"),
        ({"huggingface": "{hubert}", "lora": {"r": 4}}, "train is not 'lora'"),
        ({"huggingface": "{hubert}", "precision": "fp8"}, "precision='fp8'"),
        ({"huggingface": "{hubert}", "nemo": "a.nemo"}, "needs one of nemo, huggingface, merge"),
        ({"layers": [1]}, "this has none"),
        ({"hugginface": "{hubert}"}, "did you mean 'huggingface'"),
        ("a.nemo", "no NeMo model and no mapping"),
        ({"merge": "nowhere.yaml"}, "is no file"),
    ],
)
def test_bad_entries(entry, message, folders):
    if isinstance(entry, dict) and "huggingface" in entry:
        entry = {**entry, "huggingface": str(folders["hubert"])}
    with pytest.raises(ConfigError, match=message):
        build(describe(entry))


def test_other_models_and_damaged_folders(folders, tmp_path, monkeypatch):
    from transformers import BertConfig

    BertConfig(vocab_size=10, hidden_size=8).save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "preprocessor_config.json").write_bytes(
        (folders["hubert"] / "preprocessor_config.json").read_bytes()
    )
    with pytest.raises(ConfigError, match="'bert' is none that can be fused"):
        describe({"huggingface": str(tmp_path / "bert")})
    with pytest.raises(CheckpointError, match="transformers finds no model"):
        describe({"huggingface": str(tmp_path)})
    monkeypatch.setattr("nemo_merge.fusion.sources.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"need transformers; pip install 'nemo-merge\[fusion\]'"):
        describe({"huggingface": str(folders["hubert"])})
