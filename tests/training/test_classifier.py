"""Classifiers and recognisers on fused encoders: trained from cuts, saved with their labels, decoded to labels."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from nemo_merge import open_checkpoint
from nemo_merge.errors import AudioError, CheckpointError, ConfigError, CorpusError
from nemo_merge.training.classifier import ClassifierJob, train_classifier
from nemo_merge.training.jobs import read_job, write_job
from tests.fixtures.models import same

pytestmark = pytest.mark.nemo
pytest.importorskip("lhotse")

PITCHES = {"low": 200.0, "middle": 600.0, "high": 1800.0}
WIDTH = 16
BLOCK = {"filters": WIDTH, "repeat": 1, "kernel": [3], "stride": [1], "dilation": [1], "dropout": 0.0, "residual": False, "separable": True}  # fmt: skip


def write_cuts(folder: Path, name: str, count: int, seed: int, rate: int = 16000) -> Path:
    """Tones of three pitches in noise, of 0.3 to 0.6 s; the pitch is the domain, and the text."""
    from lhotse import CutSet, Recording, SupervisionSegment

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    cuts = []
    for index in range(count):
        label = list(PITCHES)[index % len(PITCHES)]
        time = np.arange(int(rate * rng.uniform(0.3, 0.6))) / rate
        tone = np.sin(2 * np.pi * PITCHES[label] * rng.uniform(0.9, 1.1) * time)
        path = folder / f"{name}-{index:02d}.wav"
        soundfile.write(path, 0.2 * tone + 0.02 * rng.standard_normal(len(time)), rate)
        cut = Recording.from_file(path).to_cut()
        cut.supervisions = [
            SupervisionSegment(path.stem, cut.recording.id, 0.0, cut.duration, text=label, custom={"domain": label})
        ]
        cuts.append(cut)
    CutSet.from_cuts(cuts).to_file(folder / f"{name}.jsonl.gz")
    return folder / f"{name}.jsonl.gz"


def classifier(preprocessor: dict[str, Any], features: int = WIDTH) -> dict[str, Any]:
    return {
        "sample_rate": 16000,
        "preprocessor": preprocessor,
        "encoder": {"_target_": "nemo.collections.asr.modules.ConvASREncoder", "feat_in": features, "activation": "relu", "conv_mask": True, "jasper": [BLOCK]},
        "decoder": {"_target_": "nemo.collections.asr.modules.SpeakerDecoder", "feat_in": WIDTH, "pool_mode": "xvector", "emb_sizes": [WIDTH]},
    }  # fmt: skip


def job_for(output: Path, train: Path, model: dict[str, Any], **changes: Any) -> ClassifierJob:
    fields = {"steps": 40, "learning_rate": 2e-2, "warmup_steps": 5, "batch_size": 6, **changes}
    return ClassifierJob(str(output), [str(train)], model, "domain", **fields)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tones")
    return {"train": write_cuts(folder, "train", 30, 0), "test": write_cuts(folder, "test", 12, 1)}


@pytest.fixture(scope="module")
def mel() -> dict[str, Any]:
    pytest.importorskip("nemo.collections.asr")
    from tests.fixtures.nemo_models import PREPROCESSOR

    # Differences between bands are what tells tones apart, and normalisation of each band would take them away.
    return {**PREPROCESSOR, "normalize": "all_features", "dither": 1e-5}


@pytest.fixture(scope="module")
def trained(data, mel, tmp_path_factory) -> Path:
    return train_classifier(job_for(tmp_path_factory.mktemp("trained") / "pitch.nemo", data["train"], classifier(mel)))


@pytest.fixture(scope="module")
def fused(mel, tmp_path_factory) -> dict[str, Any]:
    """A preprocessor of two encoders."""
    from omegaconf import OmegaConf

    from tests.fixtures import nemo_models

    folder = tmp_path_factory.mktemp("encoders")
    upstreams = []
    for seed in range(2):
        model = nemo_models.ctc(seed)
        config = {**OmegaConf.to_container(model.cfg), "preprocessor": mel}
        type(model)(cfg=OmegaConf.create(config)).save_to(str(folder / f"{seed}.nemo"))
        upstreams.append({"nemo": str(folder / f"{seed}.nemo")})
    target = "nemo_merge.fusion.FusedUpstreamPreprocessor"
    return {"_target_": target, "upstreams": upstreams, "mode": "hconv", "features": WIDTH}


def heard(model: Path, cuts: Path, output: Path, **settings: Any) -> tuple[list[str], list[str]]:
    """What was said and what ``nemo-merge decode`` heard."""
    from nemo_merge.training.decode import DecodingJob, read_hypotheses

    DecodingJob({"m": str(model)}, {"s": str(cuts)}, str(output), **settings).run(lambda line: None)
    found = read_hypotheses(output / "m" / "s.jsonl")
    return [str(item.text) for item in found], [item.pred_text for item in found]


def open_classifier(path: Path, **settings: Any) -> Any:
    from nemo_merge.training.recogniser import RecogniserSettings, open_recogniser

    return open_recogniser(path, RecogniserSettings(**settings), "cpu")


def test_a_classifier_learns_and_is_decoded_whatever_the_batches(trained, data, tmp_path):
    said, labels = heard(trained, data["test"], tmp_path / "together")
    assert labels == said
    assert set(labels) == set(PITCHES)
    assert heard(trained, data["test"], tmp_path / "alone", batch_size=1)[1] == labels
    with open_checkpoint(trained) as checkpoint:
        config = checkpoint.metadata.config
    assert config["labels"] == config["train_ds"]["labels"] == sorted(PITCHES)
    assert config["decoder"]["num_classes"] == 3
    assert not list(trained.parent.glob(".*"))


def test_logits_do_not_depend_on_the_batch(trained):
    recogniser = open_classifier(trained)
    rng = np.random.default_rng(0)
    samples = [0.1 * rng.standard_normal(length).astype(np.float32) for length in (16000, 4000, 9000)]
    logits: list[torch.Tensor] = []
    recogniser.model.register_forward_hook(lambda module, inputs, output: logits.append(output[0]))
    labels = recogniser.transcribe(samples, {})
    alone = [recogniser.transcribe([item], {})[0] for item in samples]
    assert alone == labels
    assert torch.allclose(logits[0], torch.cat(logits[1:]), atol=1e-4)


def test_nemo_reads_the_labels_too(trained, data):
    from lhotse import CutSet
    from nemo.collections.asr.models import EncDecSpeakerLabelModel

    model = EncDecSpeakerLabelModel.restore_from(str(trained), map_location="cpu")
    cut = next(iter(CutSet.from_file(data["test"])))
    assert model.get_label(cut.recording.sources[0].source) == cut.supervisions[0].text


def test_too_short_an_utterance_has_no_label(trained):
    assert open_classifier(trained).transcribe([np.zeros(150, np.float32), np.zeros(8000, np.float32)], {})[0] == ""


def test_the_same_job_gives_the_same_weights(data, mel, tmp_path):
    """With two buckets, more than an epoch, and noise from generators of NeMo's own."""
    spec_augment = {"_target_": "nemo.collections.asr.modules.SpectrogramAugmentation", "freq_masks": 2, "time_masks": 2, "freq_width": 4, "time_width": 5, "rect_masks": 1, "rect_freq": 4}  # fmt: skip
    model = {**classifier(mel), "spec_augment": spec_augment}
    weights = []
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        job = job_for(tmp_path / f"{name}.nemo", data["train"], model, steps=12, batch_size=3, seed=seed)
        path = train_classifier(job)
        weights.append(dict(open_checkpoint(path)))
    assert same(weights[0], weights[1])
    assert not same(weights[0], weights[2])


def test_several_sets_other_rates_and_named_classes(data, mel, tmp_path):
    """Classes in the order that was asked for, one of which no utterance is of; their losses weigh by how rare they are."""
    labels = ["none", "high", "middle", "low"]
    loss = {"_target_": "nemo.collections.common.losses.cross_entropy.CrossEntropyLoss", "weight": "auto"}
    job = job_for(tmp_path / "m.nemo", data["train"], {**classifier(mel), "loss": loss}, labels=labels, steps=2)
    slow = write_cuts(tmp_path / "audio", "slow", 4, 2, rate=8000)
    job = dataclasses.replace(job, cuts=[*job.cuts, str(slow)], label="text")
    said: list[str] = []
    path = train_classifier(job, said.append)
    assert "step 2 of 2" in said[-1]
    with open_checkpoint(path) as checkpoint:
        config = checkpoint.metadata.config
        assert checkpoint["decoder.final.weight"].shape[0] == 4
    assert config["labels"] == labels
    assert config["loss"]["weight"] == pytest.approx([34 / 4, 34 / 44, 34 / 44, 34 / 48])


def test_a_job_survives_its_file(tmp_path):
    job = job_for(tmp_path / "a.nemo", tmp_path / "c.jsonl", {"encoder": {}}, labels=["a", "b"], workers=4)
    assert read_job(write_job(job, tmp_path / "job.json")) == job
    assert (job.processes, job.placed(None, True)) == (4, job)
    fewer = job.placed(3, True)
    assert (fewer.workers, fewer.batch_size) == (3, 8)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"cuts": []}, ConfigError, "cuts: is not a list"),
        ({"cuts": ["nowhere.jsonl"]}, ConfigError, "nowhere.jsonl does not exist"),
        ({"label": "mood"}, CorpusError, "no label 'mood'"),
        ({"label": "gender"}, CorpusError, "no label 'gender'"),
        ({"labels": ["low", "high"]}, ConfigError, r"class 'middle', which labels=\['low', 'high'\] lacks"),
        ({"labels": ["low", "low"]}, ConfigError, "not a list of different classes"),
        ({"labels": 3}, ConfigError, "not a list of different classes"),
        ({"optimiser": "adam"}, ConfigError, "optimiser='adam' is not a mapping"),
        ({"model": {"preprocessor": {}, "encoder": {}}}, ConfigError, "model: has no decoder"),
        ({"output": "pitch.pt"}, ConfigError, r"must end in \.nemo"),
        ({"batch_size": 1}, ConfigError, "batch_size=1"),
        ({"steps": 0, "learning_rate": -1.0}, ConfigError, "2 problems"),
    ],
)
def test_what_cannot_be_trained_is_refused_first(changes, error, message, data, tmp_path):
    model: dict[str, Any] = {"preprocessor": {}, "encoder": {}, "decoder": {}}
    job = dataclasses.replace(job_for(tmp_path / "m.nemo", data["train"], model), **changes)
    with pytest.raises(error, match=message):
        train_classifier(job)
    assert not list(tmp_path.glob("*.nemo"))


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        ("class", CorpusError, "of one class, 'low'"),
        ("nothing", ConfigError, "is empty"),
        ("short", CorpusError, "too short for the model"),
        ("channels", AudioError, "cut stereo has 2 channels"),
    ],
)
def test_data_that_cannot_be_learnt_is_refused_first(part, error, message, data, mel, tmp_path):
    from lhotse import CutSet, Recording

    first, *others = CutSet.from_file(data["train"])
    if part == "class":
        others = [cut for cut in others if cut.supervisions[0].text == "low"]
    elif part == "nothing":
        others = []
    elif part == "short":
        others.append(first.truncate(duration=0.008))
    else:
        soundfile.write(tmp_path / "stereo.wav", np.zeros((8000, 2)), 16000)
        stereo = Recording.from_file(tmp_path / "stereo.wav").to_cut()
        stereo.supervisions = first.supervisions
        others.append(stereo)
    CutSet.from_cuts(others).to_file(tmp_path / "cuts.jsonl.gz")
    with pytest.raises(error, match=message):
        train_classifier(job_for(tmp_path / "m.nemo", tmp_path / "cuts.jsonl.gz", classifier(mel)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam": 4}, "has no search, so no beam"),
        ({"decoder": "ctc"}, "has no search, so no decoder"),
        ({"task": "translate"}, "cannot translate"),
        ({"target_language": "en"}, "takes no prompt, so no target_language"),
        ({"prompt": {"pnc": "yes"}}, "takes no prompt, so no prompt"),
    ],
)
def test_settings_of_other_models_are_refused(settings, message, trained):
    with pytest.raises(ConfigError, match=message):
        open_classifier(trained, **settings)


def test_a_model_without_labels_is_refused(trained, tmp_path):
    from nemo.collections.asr.models import EncDecSpeakerLabelModel

    model = EncDecSpeakerLabelModel.restore_from(str(trained), map_location="cpu")
    del model.cfg.labels, model.cfg.train_ds
    model.save_to(str(tmp_path / "nameless.nemo"))
    with pytest.raises(CheckpointError, match=r"nameless\.nemo: has 0 labels for its 3 classes; .* set cfg\.labels"):
        open_classifier(tmp_path / "nameless.nemo")


def test_classification_models_hear_utterances_of_other_lengths_alone(mel, tmp_path):
    """Their decoder averages over padding."""
    from nemo.collections.asr.models import EncDecClassificationModel
    from omegaconf import OmegaConf

    decoder = {
        "_target_": "nemo.collections.asr.modules.ConvASRDecoderClassification",
        "feat_in": WIDTH,
        "num_classes": 3,
    }
    config = {**classifier(mel), "decoder": decoder, "labels": ["a", "b", "c"], "loss": {}}
    torch.manual_seed(0)
    EncDecClassificationModel(cfg=OmegaConf.create(config)).save_to(str(tmp_path / "words.nemo"))
    recogniser = open_classifier(tmp_path / "words.nemo")
    batches: list[int] = []
    recogniser.model.register_forward_hook(lambda module, inputs, output: batches.append(len(output)))
    rng = np.random.default_rng(0)
    samples = [rng.standard_normal(length).astype(np.float32) for length in (16000, 4000, 16000)]
    labels = recogniser.transcribe(samples, {})
    assert sorted(batches) == [1, 2]
    assert [recogniser.transcribe([item], {})[0] for item in samples] == labels


def test_a_classifier_on_fused_encoders(fused, data, tmp_path):
    import nemo_merge

    model = classifier({**fused, "save_upstreams": True})
    nemo_merge.unregister()
    path = train_classifier(job_for(tmp_path / "fused.nemo", data["train"], model))
    nemo_merge.unregister()
    said, labels = heard(path, data["test"], tmp_path)
    assert labels == said
    with open_checkpoint(fused["upstreams"][0]["nemo"]) as before, open_checkpoint(path) as after:
        name = "encoder.layers.0.norm_out.weight"
        assert any(key.startswith("preprocessor.fusion.") for key in after)
        assert any(
            torch.equal(before[name], after[key]) for key in after if key.endswith(name.removeprefix("encoder."))
        )


def test_decoding_from_kept_layers_and_what_it_costs(fused, trained, data, tmp_path, monkeypatch):
    from nemo_merge.fusion import Upstream
    from nemo_merge.training.cost import CostJob
    from nemo_merge.training.feature_cache import FeatureCacheJob
    from nemo_merge.training.jobs import read_job, write_job

    one = {**fused, "upstreams": fused["upstreams"][1:]}
    path = train_classifier(job_for(tmp_path / "one.nemo", data["train"], classifier(one), steps=5))
    _, labels = heard(path, data["test"], tmp_path)
    job = FeatureCacheJob(fused["upstreams"], [str(data["test"])], str(tmp_path / "kept"))
    assert read_job(write_job(job, tmp_path / "job.json")) == job
    job.run(lambda line: None)
    costs = CostJob({"one": str(path), "plain": str(trained)}, str(data["test"]), str(tmp_path / "costs" / "c.json"))
    assert read_job(write_job(costs, tmp_path / "job.json")) == costs
    costs.run(lambda line: None)
    found = json.loads((tmp_path / "costs" / "c.json").read_text())
    assert found["one"]["trained"] < found["one"]["parameters"]
    assert found["plain"]["trained"] == found["plain"]["parameters"]
    assert all(item["real_time_factor"] > 0 and item["memory"] > 0 for item in found.values())
    monkeypatch.setattr(Upstream, "forward", lambda *_: pytest.fail("an encoder was run"))
    assert heard(path, data["test"], tmp_path / "again", cache=str(tmp_path / "kept"))[1] == labels
    with pytest.raises(ConfigError, match="does not stand on fused encoders"):
        heard(trained, data["test"], tmp_path / "plain", cache=str(tmp_path / "kept"))


def test_a_recogniser_on_fused_encoders_and_their_cache(fused, data, tmp_path):
    from lhotse import CutSet
    from nemo.collections.asr.models import ASRModel

    import nemo_merge
    from nemo_merge.fusion import FusedUpstreamPreprocessor, cache_features
    from nemo_merge.training.ctc import TrainingJob, train
    from tests.fixtures.nemo_models import ENCODER, LABELS

    settings = {key: value for key, value in fused.items() if key != "_target_"}
    folder = tmp_path / "features"
    cache_features(FusedUpstreamPreprocessor(**settings), CutSet.from_file(data["train"]), folder)
    decoder = {"_target_": "nemo.collections.asr.modules.ConvASRDecoder", "feat_in": None, "num_classes": len(LABELS), "vocabulary": list(LABELS)}  # fmt: skip
    encoder = {**ENCODER, "feat_in": WIDTH, "n_layers": 1, "subsampling_factor": 1}
    weights = []
    for cache in (None, str(folder)):
        preprocessor = {**fused, "cache": cache} if cache else fused
        model = {"sample_rate": 16000, "labels": list(LABELS), "preprocessor": preprocessor, "encoder": encoder, "decoder": decoder}  # fmt: skip
        nemo_merge.unregister()
        output = tmp_path / f"{'cached' if cache else 'heard'}.nemo"
        train(TrainingJob(str(output), [str(data["train"])], steps=3, learning_rate=1e-3, batch_size=4, model=model))
        weights.append(dict(open_checkpoint(output)))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.allclose(weights[0][key], weights[1][key], atol=1e-3) for key in weights[0])
    nemo_merge.unregister()
    tuned = tmp_path / "tuned.nemo"
    train(
        TrainingJob(str(tuned), [str(data["train"])], steps=1, learning_rate=1e-3, batch_size=4, init_from=str(output))
    )
    assert len(heard(tuned, data["test"], tmp_path / "decoded")[1]) == 12
    assert type(ASRModel.restore_from(str(tuned), map_location="cpu").preprocessor) is FusedUpstreamPreprocessor


def test_audio_is_heard_at_the_rate_of_the_model(data, mel, tmp_path, monkeypatch):
    """In training from nothing, in fine-tuning, and where costs are measured."""
    from lhotse import CutSet
    from nemo.collections.asr.models import EncDecCTCModel

    from nemo_merge.training import utterances
    from nemo_merge.training.cost import CostJob
    from nemo_merge.training.ctc import TrainingJob, train
    from tests.fixtures.nemo_models import ENCODER, LABELS

    durations = [cut.duration for cut in CutSet.from_file(data["train"])]
    lengths: list[int] = []
    rates: list[int] = []
    forward, load = EncDecCTCModel.forward, utterances.load_samples
    monkeypatch.setattr(
        EncDecCTCModel,
        "forward",
        lambda self, **given: (lengths.extend(given["input_signal_length"].tolist()), forward(self, **given))[1],
    )
    monkeypatch.setattr(utterances, "load_samples", lambda item, rate: (rates.append(rate), load(item, rate))[1])
    decoder = {"_target_": "nemo.collections.asr.modules.ConvASRDecoder", "feat_in": None, "num_classes": len(LABELS), "vocabulary": list(LABELS)}  # fmt: skip
    slow = {"sample_rate": 8000, "labels": list(LABELS), "preprocessor": {**mel, "sample_rate": 8000, "n_fft": 256}, "encoder": {**ENCODER, "n_layers": 1}, "decoder": decoder}  # fmt: skip
    common = {"cuts": [str(data["train"])], "steps": 2, "learning_rate": 1e-3}
    train(TrainingJob(str(tmp_path / "new.nemo"), model=slow, **common))
    train(TrainingJob(str(tmp_path / "tuned.nemo"), init_from=str(tmp_path / "new.nemo"), **common))
    assert len(lengths) > 4
    assert set(lengths) <= {round(8000 * seconds) + rounding for seconds in durations for rounding in (-1, 0, 1)}
    CostJob({"m": str(tmp_path / "new.nemo")}, str(data["test"]), str(tmp_path / "costs.json")).run(lambda line: None)
    assert set(rates) == {8000}


def test_a_recogniser_goes_on_only_with_the_same_encoders(fused, data, tmp_path):
    """What tells a job from another is in the files of the encoders too, not only in their names."""
    from nemo_merge.training.ctc import TrainingJob

    encoder = tmp_path / "encoder.nemo"
    model = {"preprocessor": {**fused, "upstreams": [{"nemo": str(encoder)}]}}
    job = TrainingJob(str(tmp_path / "m.nemo"), [str(data["train"])], steps=1, learning_rate=1e-3, model=model)
    marks = []
    for place in (0, 0, 1):
        shutil.copy(fused["upstreams"][place]["nemo"], encoder)
        marks.append(job.fingerprint())
    assert marks[0] == marks[1] != marks[2]


@pytest.mark.slow
def test_processes_train_together(data, mel, tmp_path):
    from nemo_merge.training.processes import job_command

    job = job_for(tmp_path / "m.nemo", data["train"], classifier(mel), workers=2, steps=40, batch_size=3)
    command = job_command([write_job(job, tmp_path / "job.json")], job.processes)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("step 40 of 40") == 1
    said, labels = heard(tmp_path / "m.nemo", data["test"], tmp_path)
    assert labels == said
    assert json.loads((tmp_path / "job.json").read_text())["kind"] == "classifier"
