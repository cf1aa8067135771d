"""Fused encoders in real NeMo models: built from a configuration, trained, saved as one file, restored, transcribing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import nemo_merge
from nemo_merge.errors import AudioError, CheckpointError, ConfigError

pytestmark = pytest.mark.nemo
TARGET = "nemo_merge.fusion.FusedUpstreamPreprocessor"
WIDTH = 24
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(scope="module")
def nemo_models():
    pytest.importorskip("nemo.collections.asr")
    torch.set_num_threads(1)
    from tests.fixtures import nemo_models

    nemo_merge.register()
    yield nemo_models
    nemo_merge.unregister()


@pytest.fixture(scope="module")
def files(nemo_models, tmp_path_factory) -> dict[str, Path]:
    """Two encoders of other depths, widths and rates, an expert of the first, and a merge of both."""
    folder = tmp_path_factory.mktemp("encoders")
    first = nemo_models.ctc(0)
    first.save_to(str(folder / "first.nemo"))
    nemo_models.perturbed(first, folder / "expert.nemo", 1)
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(first.cfg)
    config["encoder"] |= {"d_model": 48, "n_layers": 3, "subsampling_factor": 8}
    config["decoder"]["feat_in"] = None
    torch.manual_seed(2)
    type(first)(cfg=OmegaConf.create(config)).save_to(str(folder / "second.nemo"))
    merge = {"experts": ["first.nemo", "expert.nemo"], "method": "soup"}
    (folder / "merge.yaml").write_text(yaml.safe_dump(merge))
    return {name: folder / f"{name}.nemo" for name in ("first", "second", "expert")} | {"merge": folder / "merge.yaml"}


def settings(files: dict[str, Path], **changes: Any) -> dict[str, Any]:
    upstreams = [{"nemo": str(files["first"])}, {"nemo": str(files["second"])}]
    return {"_target_": TARGET, "upstreams": upstreams, "mode": "hconv", "features": WIDTH, **changes}


def fused_config(nemo_models: Any, model: Any, preprocessor: dict[str, Any]) -> Any:
    """A model's configuration with fused encoders before a small encoder that shortens no more."""
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(model.cfg)
    config["preprocessor"] = preprocessor
    config["encoder"] |= {"feat_in": WIDTH, "n_layers": 1, "subsampling_factor": 1}
    config.get("decoder", {}).update({"feat_in": None} if "feat_in" in config.get("decoder", {}) else {})
    nemo_models._fresh(0)
    return OmegaConf.create(config)


@pytest.fixture
def build(nemo_models, files, tmp_path):
    def make(**changes: Any) -> Any:
        from nemo.collections.asr.models import EncDecCTCModel

        return EncDecCTCModel(cfg=fused_config(nemo_models, nemo_models.ctc(0), settings(files, **changes)))

    return make


def noise(*samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(len(samples), max(samples), generator=generator), torch.tensor(samples)


def train(model: Any, batch: Any, steps: int = 2) -> None:
    """A stock trainer with the model's own optimiser."""
    import lightning.pytorch as lightning

    trainer = lightning.Trainer(max_steps=steps, accelerator="cpu", log_every_n_steps=100, **QUIET)
    model.set_trainer(trainer)
    model.setup_optimization({"name": "sgd", "lr": 0.1})
    trainer.fit(model, torch.utils.data.DataLoader([batch] * steps, batch_size=None))


def awake(model: Any) -> list[str]:
    """Modules of the encoders that are in training mode; NeMo's activations are one object for all models."""
    modules = [item for upstream in model.preprocessor.upstreams for item in upstream.named_modules()]
    return [name for name, module in modules if module.training and not name.endswith("activation")]


def ctc_batch() -> Any:
    audio, lengths = noise(16000, 12000)
    return audio, lengths, torch.randint(1, 20, (2, 3)), torch.tensor([3, 2])


def test_layers_of_an_encoder_are_what_flows_through_it(files):
    from nemo.collections.asr.models import EncDecCTCModel

    from nemo_merge.fusion.sources import build, describe, load_weights

    entry = describe({"nemo": str(files["first"])})
    upstream = build(entry)
    load_weights(entry, upstream)
    upstream.prepare()
    model = EncDecCTCModel.restore_from(str(files["first"]), map_location="cpu").eval()
    audio, lengths = noise(16000, 9000)
    layers, valid = upstream(audio, lengths)
    features, ends = model.preprocessor(input_signal=audio, length=lengths)
    with torch.no_grad():
        expected, encoded = model.encoder(audio_signal=features, length=ends)
        subsampled, _ = model.encoder.pre_encode(x=features.transpose(1, 2), lengths=ends)
    assert valid.tolist() == encoded.tolist()
    assert len(layers) == 3  # none twice
    assert torch.allclose(layers[0], subsampled.transpose(1, 2)[:, :, : layers[0].shape[2]], atol=1e-5)
    assert torch.allclose(layers[-1], expected[:, :, : layers[0].shape[2]], atol=1e-5)
    assert not torch.allclose(layers[-1], layers[-2], atol=1e-2)
    assert (upstream.frame_shift, upstream.sample_rate, upstream.dim, upstream.num_layers) == (0.04, 16000, 32, 3)
    # Another choice of layers on the same encoder, before and after: nothing is remembered.
    upstream.layers = [1]
    assert torch.equal(upstream(audio, lengths)[0][0], layers[1])


def test_nemos_own_extractor_takes_an_interface_as_aggregator(files):
    from nemo.collections.asr.models import EncDecCTCModel
    from nemo.collections.asr.modules import ConformerMultiLayerFeatureExtractor

    from nemo_merge.fusion import WeightedSum

    model = EncDecCTCModel.restore_from(str(files["second"]), map_location="cpu").eval()
    extractor = ConformerMultiLayerFeatureExtractor(
        model.encoder, aggregator=WeightedSum(3, 48), layer_idx_list=[0, 1, 2], include_final_output=False
    )
    audio, lengths = noise(16000, 9000)
    features, ends = model.preprocessor(input_signal=audio, length=lengths)
    output, valid = extractor(audio_signal=features, length=ends)
    assert output.shape[:2] == (2, 48)
    assert valid.tolist() == model.encoder(audio_signal=features, length=ends)[1].tolist()


@pytest.mark.parametrize(("rate", "shift"), [("max", 0.04), ("min", 0.08)])
def test_encoders_of_other_rates(files, rate, shift):
    from nemo_merge.fusion import FusedUpstreamPreprocessor

    fused = FusedUpstreamPreprocessor([{"nemo": str(files[name])} for name in ("first", "second")], rate=rate)
    assert (fused.window_stride, fused.fusion.frame_shift, fused.output_dim) == (shift, shift, 48)
    audio, lengths = noise(32480, 24160)
    output, valid = fused(input_signal=audio, length=lengths)
    times = [51, 38] if rate == "max" else [26, 19]
    assert output.shape == (2, 48, times[0])
    assert valid.tolist() == times
    alone, _ = fused(input_signal=audio[1:, :24160], length=lengths[1:])
    assert torch.allclose(output[1, :, : times[1]], alone[0], atol=1e-4)
    assert not output[1, :, times[1] :].any()


def test_frozen_encoders_stay_as_they_are(build):
    model = build()
    upstreams = model.preprocessor.upstreams
    before = {name: value.clone() for name, value in upstreams.state_dict().items()}
    interface = {name: value.clone() for name, value in model.preprocessor.fusion.state_dict().items()}
    batch = ctc_batch()
    train(model, batch)
    model.unfreeze()  # what scripts and transcribe() may do
    train(model, batch)
    assert not awake(model)
    assert model.preprocessor.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in upstreams.parameters())
    assert all(torch.equal(value, before[name]) for name, value in upstreams.state_dict().items())
    assert any(
        not torch.equal(value, interface[name]) for name, value in model.preprocessor.fusion.state_dict().items()
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["full", "lora"])
def test_encoders_can_be_trained(build, files, how, tmp_path):
    options = {"train": how, **({"lora": {"r": 2, "lora_alpha": 4}} if how == "lora" else {})}
    model = build(upstreams=[{"nemo": str(files["first"]), **options}])
    before = {name: value.clone() for name, value in model.preprocessor.upstreams.state_dict().items()}
    train(model, ctc_batch(), steps=3)
    moved = [
        name
        for name, value in model.preprocessor.upstreams.state_dict().items()
        if not torch.equal(value, before[name])
    ]
    assert moved
    if how == "lora":
        assert all(".lora_" in name for name in moved)
    check_round_trip(model.eval(), tmp_path)


def check_round_trip(model: Any, folder: Path, **options: Any) -> Any:
    """Saves, restores elsewhere, and compares the preprocessor's output."""
    from nemo.collections.asr.models import ASRModel

    model.save_to(str(folder / "fused.nemo"))
    (folder / "elsewhere").mkdir()
    (folder / "fused.nemo").rename(folder / "elsewhere" / "fused.nemo")
    kind = type(model) if not isinstance(model, ASRModel) else ASRModel
    again = kind.restore_from(str(folder / "elsewhere" / "fused.nemo"), map_location="cpu").eval()
    audio, lengths = noise(16000, 12000)
    with torch.no_grad():
        expected = model.eval().preprocessor(input_signal=audio, length=lengths)
        output = again.preprocessor(input_signal=audio, length=lengths)
    assert torch.equal(output[0], expected[0])
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in again.state_dict().items()
    }
    return again


def test_one_file_holds_everything(build, files, tmp_path):
    model = build()
    hidden = {name: path.rename(path.with_suffix(".away")) for name, path in files.items() if path.suffix == ".nemo"}
    try:
        again = check_round_trip(model, tmp_path)
        audio = [noise(16000)[0][0].numpy(), noise(9000)[0][0].numpy()]
        assert [h.text for h in again.transcribe(audio, verbose=False)] == [
            h.text for h in model.transcribe(audio, verbose=False)
        ]
        assert not awake(again)
        checked = again.cfg.preprocessor
        assert (checked.window_stride, checked.features) == (0.04, WIDTH)
        assert checked.upstreams[0].provenance.sha256
        with pytest.raises(CheckpointError, match=r"first\.nemo"):
            type(model)(cfg=again.cfg)  # not restored: the weights are asked for
    finally:
        for name, path in hidden.items():
            path.rename(files[name])


@pytest.mark.slow
def test_a_lightning_checkpoint_restores(build, tmp_path):
    import lightning.pytorch as lightning

    model = build()
    trainer = lightning.Trainer(accelerator="cpu", **QUIET)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "fused.ckpt")
    again = type(model).load_from_checkpoint(tmp_path / "fused.ckpt", map_location="cpu").eval()
    audio, lengths = noise(16000)
    expected, _ = model.eval().preprocessor(input_signal=audio, length=lengths)
    assert torch.equal(again.preprocessor(input_signal=audio, length=lengths)[0], expected)


def test_encoders_can_be_left_out(build, files, tmp_path):
    model = build(save_upstreams=False)
    assert not any(".upstreams." in name for name in model.state_dict())
    check_round_trip(model, tmp_path)


def test_a_merge_is_an_encoder(build, files, tmp_path):
    model = build(upstreams=[{"merge": str(files["merge"])}])
    from nemo_merge import open_checkpoint

    own = model.preprocessor.upstreams[0].state_dict()
    with open_checkpoint(files["first"]) as first, open_checkpoint(files["expert"]) as expert:
        name = "encoder.layers.0.self_attn.linear_q.weight"
        assert torch.allclose(own[f"_{name}"], (first[name] + expert[name]) / 2, atol=1e-6)
    record = model.cfg.preprocessor.upstreams[0].provenance.merge
    assert record.method.name == "soup"
    assert check_round_trip(model, tmp_path).cfg.preprocessor.upstreams[0].provenance.merge == record


def test_a_model_in_memory_is_an_encoder(nemo_models, files, tmp_path):
    from nemo.collections.asr.models import EncDecCTCModel
    from omegaconf import open_dict

    from nemo_merge.fusion import FusedUpstreamPreprocessor

    source = nemo_models.ctc(0)
    model = nemo_models.ctc(1)
    fused = FusedUpstreamPreprocessor([source], mode="ws", output_dim=16)
    own = fused.upstreams[0].state_dict()
    assert torch.equal(own["_encoder.pre_encode.out.weight"], source.encoder.pre_encode.out.weight)
    fused.place_in(model)
    check_round_trip(model, tmp_path)
    with pytest.raises(ConfigError, match="expects features of width 16, not 32"):
        FusedUpstreamPreprocessor([source], mode="ws").place_in(nemo_models.ctc(2))
    with open_dict(model.cfg):
        model.cfg.preprocessor.pop("upstreams")
    with pytest.raises(ConfigError, match="upstreams is no list"):
        EncDecCTCModel(cfg=model.cfg)


def cuts_of(folder: Path, *samples: int) -> Any:
    import numpy as np
    import soundfile
    from lhotse import CutSet, Recording

    cuts = []
    for index, count in enumerate(samples):
        audio = np.random.default_rng(index).integers(-3000, 3000, count).astype(np.int16)
        soundfile.write(folder / f"{index}.wav", audio, 16000)
        cuts.append(Recording.from_file(folder / f"{index}.wav").to_cut())
    return CutSet.from_cuts(cuts)


def test_cached_layers_are_those_of_the_encoders(build, files, tmp_path):
    from nemo_merge.fusion import cache_features

    model = build()
    fused = model.preprocessor.eval()
    cuts = cuts_of(tmp_path, 16000, 9000, 12345)
    cached = cache_features(fused, cuts, tmp_path / "cache", max_duration=2.0)
    assert [cut.upstream_1.array.load().shape for cut in cached] == [(13, 4, 48), (7, 4, 48), (10, 4, 48)]
    audio = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(cut.load_audio()[0]) for cut in cuts], batch_first=True)
    lengths = torch.tensor([16000, 9000, 12345])
    expected, valid = fused(input_signal=audio, length=lengths)
    calls = []
    for upstream in fused.upstreams:
        upstream.register_forward_hook(lambda _, args, output: calls.append(len(args[0])))
    (tmp_path / "cache").rename(tmp_path / "moved")
    fused.use_cache(tmp_path / "moved")
    output, ends = fused(input_signal=audio, length=lengths)
    assert not calls
    assert torch.allclose(output, expected, atol=1e-5)
    assert ends.tolist() == valid.tolist()
    changed = audio.clone()
    changed[1] *= 0.5  # as by augmentation
    with_one, _ = fused(input_signal=changed, length=lengths)
    assert calls == [1, 1]
    assert torch.allclose(with_one[[0, 2]], expected[[0, 2]], atol=1e-5)
    fused.use_cache(None)
    assert torch.allclose(fused(input_signal=changed, length=lengths)[0], with_one, atol=1e-4)
    with pytest.raises(ConfigError, match="no cache that is finished"):
        fused.use_cache(tmp_path)
    for entry in ({"nemo": str(files["expert"])}, {"nemo": str(files["first"]), "layers": [0, 2]}):
        other = build(upstreams=[{"nemo": str(files["second"])}, entry], mode="ws")
        with pytest.raises(ConfigError, match=f"has no layers of {entry['nemo']}; they are of other encoders"):
            other.preprocessor.use_cache(tmp_path / "moved")
    turned = build(upstreams=[{"nemo": str(files["second"])}, {"nemo": str(files["first"])}], mode="ws")
    expected, _ = turned.preprocessor.eval()(input_signal=audio, length=lengths)
    turned.preprocessor.use_cache(tmp_path / "moved")  # each encoder finds its own
    assert torch.allclose(turned.preprocessor(input_signal=audio, length=lengths)[0], expected, atol=1e-5)
    trained = build(upstreams=[{"nemo": str(files["first"]), "train": "full"}])
    with pytest.raises(ConfigError, match="cannot be cached"):
        cache_features(trained.preprocessor, cuts, tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_rate": 8000}, "hears audio of 16000 Hz, but sample_rate=8000"),
        ({"window_stride": 0.01}, "frames are 0.04 s apart"),
        ({"output_dim": 12}, "output_dim=12 and features=24: give one"),
        ({"mode": "hcnv"}, "did you mean 'hconv'"),
        ({"speed": 2}, "does not take these settings"),
        ({"upstreams": [{"nemo": "{first}", "layers": [1]}]}, "needs 3 layers or more"),
        ({"cache": "nowhere"}, "no cache that is finished"),
    ],
)
def test_what_does_not_fit_is_refused_at_construction(files, changes, message):
    from nemo_merge.fusion import FusedUpstreamPreprocessor

    given = {key: value for key, value in settings(files, **changes).items() if key != "_target_"}
    for entry in given["upstreams"]:
        entry["nemo"] = str(files["first"]) if entry["nemo"] == "{first}" else entry["nemo"]
    with pytest.raises(ConfigError, match=message):
        FusedUpstreamPreprocessor(**given)


def test_audio_without_samples(build):
    audio, _ = noise(16000, 12000)
    with pytest.raises(AudioError, match=r"utterances \[1\] of a batch of 2 have no samples"):
        build().preprocessor(input_signal=audio, length=torch.tensor([16000, 0]))


def test_nemo_allows_nothing_else(nemo_models, files):
    from nemo.core.classes import common

    assert common._is_target_allowed(TARGET)
    assert not common._is_target_allowed("nemo_merge.merge")
    nemo_merge.unregister()
    try:
        assert not common._is_target_allowed(TARGET)
    finally:
        nemo_merge.register()


@pytest.mark.slow
def test_decoding_accepts_fused_models(build, tmp_path):
    from nemo_merge.training.nemo_recogniser import NemoRecogniser
    from nemo_merge.training.recogniser import RecogniserSettings

    model = build().eval()
    model.save_to(str(tmp_path / "fused.nemo"))
    audio = [noise(16000)[0][0].numpy()]
    expected = [hypothesis.text for hypothesis in model.transcribe(audio, verbose=False)]
    nemo_merge.unregister()
    try:
        recogniser = NemoRecogniser(tmp_path / "fused.nemo", RecogniserSettings(), torch.device("cpu"))
        assert recogniser.transcribe(audio, {}) == [text.strip() for text in expected]
    finally:
        nemo_merge.register()


@pytest.mark.slow
def test_fine_tuning_accepts_fused_models(build, tmp_path):
    from nemo_merge import open_checkpoint
    from nemo_merge.training.fine_tune import FineTuningJob, fine_tune
    from tests.fixtures.audio import write_audio, write_manifest

    base, output = tmp_path / "fused.nemo", tmp_path / "tuned.nemo"
    build().save_to(str(base))
    train = write_manifest(tmp_path / "train.json", write_audio(tmp_path / "audio", 8), text="o gato")
    nemo_merge.unregister()
    try:
        optim = {"name": "adamw", "lr": 1e-2}
        fine_tune(FineTuningJob(str(base), str(output), train=[str(train)], steps=2, batch_size=2, optim=optim))
    finally:
        nemo_merge.register()
    with open_checkpoint(base) as before, open_checkpoint(output) as after:
        moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("preprocessor.fusion.") for name in moved)
    assert not any(name.startswith("preprocessor.upstreams.") for name in moved)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["transducer", "attention", "hybrid"])
def test_other_recognisers(kind, nemo_models, files, tmp_path):
    from tests.adapters.test_nemo_models import batches

    template = getattr(nemo_models, kind)(tmp_path)
    from omegaconf import OmegaConf

    config = fused_config(nemo_models, template, settings(files))
    plain = OmegaConf.to_container(config)
    for folder, part in ((tmp_path / "bpe", plain["tokenizer"]), *((tmp_path / language, part) for language, part in plain["tokenizer"].get("langs", {}).items())):  # fmt: skip
        if part.get("dir") is None and part["type"] == "bpe":
            part["dir"] = str(folder)
    model = type(template)(cfg=OmegaConf.create(plain))
    batch = batches("attention" if kind == "attention" else "rnnt", 1)[0]
    train(model, batch, steps=1)
    again = check_round_trip(model, tmp_path)
    audio = [noise(16000)[0][0].numpy()]
    options = {"source_lang": "pt", "target_lang": "pt"} if kind == "attention" else {}
    texts = [[h.text for h in one.eval().transcribe(audio, verbose=False, **options)] for one in (model, again)]
    assert texts[0] == texts[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["EncDecSpeakerLabelModel", "EncDecClassificationModel"])
def test_classification_and_speaker_models(kind, nemo_models, files, tmp_path):
    import nemo.collections.asr.models as models
    from omegaconf import OmegaConf

    block = {"filters": 16, "repeat": 1, "kernel": [3], "stride": [1], "dilation": [1], "dropout": 0.0, "residual": False, "separable": True}  # fmt: skip
    encoder = {"_target_": "nemo.collections.asr.modules.ConvASREncoder", "feat_in": WIDTH, "activation": "relu", "conv_mask": True, "jasper": [block]}  # fmt: skip
    speaker = kind == "EncDecSpeakerLabelModel"
    decoder = (
        {"_target_": "nemo.collections.asr.modules.SpeakerDecoder", "feat_in": 16, "num_classes": 3, "pool_mode": "attention", "emb_sizes": 8}
        if speaker
        else {"_target_": "nemo.collections.asr.modules.ConvASRDecoderClassification", "feat_in": 16, "num_classes": 3}
    )  # fmt: skip
    loss = {"_target_": "nemo.collections.common.losses.cross_entropy.CrossEntropyLoss"}
    config = {
        "sample_rate": 16000,
        "labels": ["a", "b", "c"],
        "preprocessor": settings(files),
        "encoder": encoder,
        "decoder": decoder,
        "loss": loss if speaker else {},
        "optim": nemo_models.OPTIM,
    }
    nemo_models._fresh(0)
    model = getattr(models, kind)(cfg=OmegaConf.create(config))
    audio, lengths = noise(16000, 12000)
    model.eval()
    again = check_round_trip(model, tmp_path)
    results = [one(input_signal=audio, input_signal_length=lengths) for one in (model, again)]
    logits = [result[0] if isinstance(result, tuple) else result for result in results]
    assert logits[0].shape == (2, 3)
    assert torch.equal(*logits)
    assert math.isfinite(logits[0].sum().item())
