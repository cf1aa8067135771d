"""Statistics estimated from audio, on real NeMo models."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch

soundfile = pytest.importorskip("soundfile")
from nemo_merge import merge  # noqa: E402
from nemo_merge.errors import AudioError, CheckpointError, MergeError  # noqa: E402
from nemo_merge.merging.reproduce import reproduce  # noqa: E402
from nemo_merge.training.recalibrate import recalibrate  # noqa: E402
from tests.fixtures import nemo_models  # noqa: E402
from tests.fixtures.audio import write_audio, write_manifest  # noqa: E402

pytestmark = [
    pytest.mark.nemo,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("nemo") is None, reason="NeMo is not installed"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("recalibrate")


@pytest.fixture(scope="module")
def files(home):
    return write_audio(home / "audio", count=9)


@pytest.fixture(scope="module")
def models(home):
    """One of every kind, made before any is restored: NeMo takes what it restored last for the origin of the next."""
    for kind in ("hybrid", "attention"):
        (home / kind).mkdir()
        getattr(nemo_models, kind)(home / kind, seed=3).save_to(str(home / f"{kind}.nemo"))
    made = nemo_models.ctc()
    made.save_to(str(home / "ctc.nemo"))
    return made


@pytest.fixture(scope="module")
def model(home, models):
    return models, home / "ctc.nemo"


def batch_norms(encoder):
    return {name: m for name, m in encoder.named_modules() if isinstance(m, torch.nn.BatchNorm1d)}


def reference(path, files):
    """The definition, slow and in float64: one layer after the other, whole forward passes, all frames side by side."""
    from nemo.collections.asr.models import ASRModel

    model = ASRModel.restore_from(str(path), map_location="cpu").eval()
    features = []
    with torch.no_grad():
        for file in files:
            signal = torch.from_numpy(soundfile.read(file, dtype="float32")[0])
            feature, _ = model.preprocessor(input_signal=signal[None], length=torch.tensor([len(signal)]))
            features.append(feature[:, :, : len(signal) // 160])
        encoder = model.encoder.double()
        for layer in batch_norms(encoder).values():
            seen = []
            handle = layer.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0][0]))
            for feature in features:
                encoder(audio_signal=feature.double(), length=torch.tensor([feature.shape[-1]]))
            handle.remove()
            frames = torch.cat(seen, dim=1)
            layer.running_mean.copy_(frames.mean(1))
            layer.running_var.copy_(frames.var(1))
    found = {}
    for name, layer in batch_norms(encoder).items():
        found[f"encoder.{name}.running_mean"] = layer.running_mean
        found[f"encoder.{name}.running_var"] = layer.running_var
    return found


@pytest.mark.parametrize("kind", ["ctc", "hybrid", "attention"])
def test_statistics_are_those_of_the_definition_in_float64(kind, home, files, models):
    expected = reference(home / f"{kind}.nemo", files)
    found = recalibrate(home / f"{kind}.nemo", files)
    assert found.keys() == expected.keys()
    assert len(found) == 4
    for name, value in found.items():
        assert value.dtype == torch.float32
        error = (value.double() - expected[name]).norm() / expected[name].norm()
        assert error < 1e-5, name  # float32 activations


def test_the_result_does_not_depend_on_threads_order_or_form_of_the_audio(home, files, model):
    _, path = model
    first = recalibrate(path, files)
    manifest = write_manifest(home / "m.json", files)
    for other in (recalibrate(path, manifest, workers=3), recalibrate(path, files[::-1])):
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_training_noise_and_padding_leave_no_trace(home, files, model, monkeypatch):
    _, path = model
    noisy = {"dropout": 0.5, "dropout_pre_encoder": 0.5, "dropout_emb": 0.5, "dropout_att": 0.5}
    monkeypatch.setattr(nemo_models, "ENCODER", {**nemo_models.ENCODER, **noisy})
    monkeypatch.setattr(nemo_models, "PREPROCESSOR", {**nemo_models.PREPROCESSOR, "dither": 0.1, "pad_to": 16})
    other = nemo_models.ctc()
    other.save_to(str(home / "noisy.nemo"))
    first, second = recalibrate(path, files), recalibrate(home / "noisy.nemo", files)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_some_layers_only(files, model):
    _, path = model
    everything = recalibrate(path, files)
    last = [name for name in everything if ".1." in name]
    assert sorted(recalibrate(path, files, names=last)) == sorted(last)
    with pytest.raises(CheckpointError, match=r"has no batch normalisation 'encoder\.layers\.7"):
        recalibrate(path, files, names=["encoder.layers.7.conv.batch_norm.running_var"])


def test_merging_recalibrates_and_the_result_restores_transcribes_and_repeats(home, files, model, monkeypatch):
    from nemo.collections.asr.models import ASRModel

    made, path = model
    monkeypatch.chdir(home)
    experts = [nemo_models.perturbed(made, home / f"expert_{seed}.nemo", seed) for seed in (1, 2)]
    manifest = write_manifest(home / "audio.json", files)
    options = {"batch_norm": "recalibrate", "audio": str(manifest)}
    report = merge(path, experts, "task_arithmetic", output=home / "merged.nemo", **options)
    restored = ASRModel.restore_from(str(home / "merged.nemo"), map_location="cpu").eval()
    assert isinstance(restored.transcribe([str(files[0])], verbose=False)[0].text, str)
    expected = reference(home / "merged.nemo", files)  # the definition holds for the finished model too
    state = restored.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(state[name].double(), value, rtol=1e-4, atol=1e-5)
    assert restored.cfg.nemo_merge.audio.sha256 == report.provenance["audio"]["sha256"]
    assert report.provenance["audio"]["recordings"] == len(files)
    assert "nemo" in report.provenance["versions"]
    assert reproduce(home / "merged.nemo").same_bytes
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(Exception, match="audio"):
        reproduce(home / "merged.nemo")


def test_what_nemo_says_no_to_is_one_message(files, nemo_family, tmp_path):
    base, experts = nemo_family  # a few tensors, no model that NeMo could restore
    audio = [str(file) for file in files]
    with pytest.raises(MergeError, match=r"batch_norm=recalibrate: .*0\.nemo: NeMo cannot restore it"):
        merge(base, experts, "soup", output=tmp_path / "m.nemo", batch_norm="recalibrate", audio=audio)
    assert [path.name for path in tmp_path.iterdir()] == ["inputs"]


def test_models_that_cannot_be_recalibrated(home, files, monkeypatch):
    with pytest.raises(CheckpointError, match=r"nowhere\.nemo: no such file"):
        recalibrate(home / "nowhere.nemo", files)
    monkeypatch.setattr(nemo_models, "ENCODER", {**nemo_models.ENCODER, "conv_norm_type": "layer_norm"})
    nemo_models.ctc().save_to(str(home / "layer_norm.nemo"))
    with pytest.raises(CheckpointError, match=r"layer_norm\.nemo: has no batch normalisation"):
        recalibrate(home / "layer_norm.nemo", files)
    monkeypatch.undo()
    broken = nemo_models.ctc()
    with torch.no_grad():
        broken.encoder.layers[0].conv.pointwise_conv1.weight.fill_(1e38)
    broken.save_to(str(home / "broken.nemo"))
    with pytest.raises(MergeError, match=r"'encoder\.layers\.0\.conv\.batch_norm\.running_mean' that are not finite"):
        recalibrate(home / "broken.nemo", files)


def test_audio_that_breaks_off(home, files, model):
    _, path = model
    rows = [{"audio_filepath": str(file), "duration": 2.0} for file in files]
    (home / "late.json").write_text("\n".join(map(json.dumps, [*rows, {**rows[0], "offset": 9.0}])))
    with pytest.raises(AudioError, match=r"clip_00\.wav: ends before 9\.00 s"):
        recalibrate(path, home / "late.json")
    damaged = home / "damaged.flac"
    soundfile.write(damaged, torch.randn(160000).numpy() * 0.1, 16000)
    damaged.write_bytes(damaged.read_bytes()[:20000])
    with pytest.raises(AudioError, match=r"damaged\.flac: cannot be read as audio"):
        recalibrate(path, [*files, damaged])
