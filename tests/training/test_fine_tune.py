"""Fine-tuning of tiny NeMo models: what is trained, what is repeated, what is left behind."""

from __future__ import annotations

import dataclasses
import json
from importlib.util import find_spec

import pytest
import torch
import yaml

pytest.importorskip("soundfile")
from nemo_merge import merge, open_checkpoint
from nemo_merge.errors import CheckpointError, ConfigError
from nemo_merge.training.fine_tune import FineTuningJob, fine_tune
from nemo_merge.training.jobs import read_job, write_job
from nemo_merge.training.processes import run_job
from tests.fixtures import nemo_models
from tests.fixtures.audio import write_audio, write_manifest
from tests.fixtures.models import same

pytestmark = [pytest.mark.nemo, pytest.mark.skipif(find_spec("nemo") is None, reason="NeMo is not installed")]

TEXT = "o gato preto"
LORA = {"r": 4, "lora_alpha": 8}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fine_tune")
    write_manifest(folder / "train.json", write_audio(folder / "audio"), text=TEXT, source_lang="pt", target_lang="pt")
    # All before any is restored: NeMo takes what it restored last for the origin of the next.
    patch = pytest.MonkeyPatch()
    noisy = {"dropout": 0.1, "dropout_pre_encoder": 0.1, "dropout_emb": 0.1, "dropout_att": 0.1}
    with patch.context() as context:
        context.setattr(nemo_models, "ENCODER", {**nemo_models.ENCODER, **noisy})
        context.setattr(nemo_models, "PREPROCESSOR", {**nemo_models.PREPROCESSOR, "dither": 0.01})
        nemo_models.ctc().save_to(str(folder / "ctc.nemo"))
    for kind in ("ctc_pieces", "transducer", "hybrid", "attention"):
        (folder / kind).mkdir()
        getattr(nemo_models, kind)(folder / kind).save_to(str(folder / f"{kind}.nemo"))
    return folder


@pytest.fixture
def job(home, tmp_path):
    """A job of three steps with everything that a job must have; other fields by keyword."""

    def make(**fields):
        return FineTuningJob(**{
            "base": str(home / "ctc.nemo"),
            "output": str(tmp_path / "tuned.nemo"),
            "train": [str(home / "train.json")],
            "steps": None if "epochs" in fields else 3,
            "batch_size": 4,
            "optim": {"name": "adamw", "lr": 1e-2, "sched": {"name": "CosineAnnealing", "warmup_steps": 1, "max_steps": 9}},
            **fields,
        })  # fmt: skip

    return make


def changed(job):
    """Names of the tensors that differ from the base's."""
    with open_checkpoint(job.base) as base, open_checkpoint(job.output) as output:
        assert base.keys() == output.keys()
        return {name for name in base if not torch.equal(base[name], output[name])}


def is_statistic(name):
    return "running" in name or "num_batches" in name


ATTENTION = [f"linear_{part}.weight" for part in ("q", "k", "v", "out")]


@pytest.mark.parametrize(
    ("trainable", "wanted"),
    [
        ("full", lambda name: not name.startswith("preprocessor")),
        ("encoder", lambda name: name.startswith("encoder.")),
        ("decoder", lambda name: name.startswith("decoder.")),
        ([r"layers\.1\.norm_out", "^decoder"], lambda name: "layers.1.norm_out" in name or name.startswith("decoder.")),
        ("lora", lambda name: any(name.endswith(part) for part in ATTENTION)),
        ("bayesian_lora", lambda name: any(name.endswith(part) for part in ATTENTION)),
    ],
    ids=["full", "encoder", "decoder", "patterns", "lora", "bayesian_lora"],
)
def test_only_what_is_trained_changes_and_frozen_statistics_stay(job, trainable, wanted):
    adapted = trainable in ("lora", "bayesian_lora")
    one = job(trainable=trainable, adapter=LORA if adapted else {})
    fine_tune(one)
    with open_checkpoint(one.base) as base:
        expected = {name for name in base if wanted(name)}
    found = changed(one)
    # Biases of keys have no effect on attention, so noise decides whether they move.
    assert {name for name in expected ^ found if "linear_k.bias" not in name} == set()
    assert any(map(is_statistic, found)) == (trainable in ("full", "encoder"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ctc_pieces", "transducer", "hybrid", "attention"])
def test_every_kind_of_model_is_trained_and_validated(home, job, kind, tmp_path):
    lines = []
    one = job(
        base=str(home / f"{kind}.nemo"), output=str(tmp_path / "adapter"), trainable="bayesian_lora", adapter=LORA,
        validation={"dev": str(home / "train.json"), "other": str(home / "train.json")}, select="val_loss", steps=2,
        validate_every=1,
    )  # fmt: skip
    outcome = fine_tune(one, lines.append)
    assert outcome.best is not None
    assert sum("val_loss" in line for line in lines) == 2 + 1
    merged = tmp_path / "merged.nemo"
    merge(one.base, [one.output], "task_arithmetic", scale=1.0, output=merged)
    assert changed(dataclasses.replace(one, output=str(merged)))


def test_the_same_job_gives_the_same_weights_and_another_seed_others(job, tmp_path):
    masking = {
        "freq_masks": 1,
        "time_masks": 2,
        "freq_width": 4,
        "time_width": 10,
        "use_vectorized_spec_augment": False,
    }
    outputs = {name: str(tmp_path / f"{name}.nemo") for name in "abc"}
    for name, seed in zip("abc", (0, 0, 1), strict=True):
        fine_tune(job(output=outputs[name], seed=seed, spec_augment=masking))
    a, b, c = (dict(open_checkpoint(path)) for path in outputs.values())
    assert same(a, b)
    assert not same(a, c)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("epochs", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["steps", "epochs"])
def test_a_resumed_run_ends_like_one_that_was_not_interrupted(home, job, tmp_path, epochs):
    """Within an epoch and in a later one, with dropout, dither, posterior samples, accumulation and validation."""
    length = {"epochs": 3} if epochs else {"steps": 7}
    common = {"trainable": "bayesian_lora", "adapter": {**LORA, "lora_dropout": 0.2}, "checkpoint_every": 1,
              "validation": {"dev": str(home / "train.json")}, "select": "val_loss", "batch_size": 2, "seed": 3,
              "validate_every": 2, "accumulate": 2, **length}  # fmt: skip
    whole = job(output=str(tmp_path / "whole"), **common)
    expected = fine_tune(whole)

    stop = "step 6: val_loss"  # with epochs, in the second one
    resumed = job(output=str(tmp_path / "resumed"), **common)

    def interrupt(line):
        if stop in line:
            raise Interrupted

    with pytest.raises(Interrupted):
        fine_tune(resumed, interrupt)
    assert (resumed.checkpoints / "last.ckpt").is_file()
    lines = []
    outcome = fine_tune(resumed, lines.append)
    assert any("going on with" in line for line in lines)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()
    assert (outcome.steps, outcome.best) == (expected.steps, expected.best)
    assert not resumed.checkpoints.exists()


def test_checkpoints_are_small_plain_and_of_one_job(home, job, tmp_path):
    one = job(trainable="lora", adapter=LORA, checkpoint_every=1, output=str(tmp_path / "lora"))

    def interrupt(line):
        if "step 3" in line:
            raise Interrupted

    with pytest.raises(Interrupted):
        fine_tune(one, interrupt)
    last = one.checkpoints / "last.ckpt"
    content = torch.load(last, weights_only=True)
    assert any("lora_A" in name for name in content["state_dict"])
    assert not any(name.endswith("base_layer.weight") for name in content["state_dict"])
    with pytest.raises(ConfigError, match=r"of a run with other settings.*resume=false"):
        fine_tune(dataclasses.replace(one, seed=5))
    torch.save({"callbacks": print}, last)
    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        fine_tune(one)
    fine_tune(dataclasses.replace(one, resume=False))
    assert not one.checkpoints.exists()


def test_the_best_weights_are_kept_and_training_stops_early(home, job):
    diverging = {"name": "sgd", "lr": 100.0}
    lines = []
    one = job(
        steps=20, optim=diverging, validation={"dev": str(home / "train.json")}, select="val_loss", validate_every=1,
        patience=2, keep_checkpoints=2, trainable="decoder",
    )  # fmt: skip
    outcome = fine_tune(one, lines.append)
    values = [float(line.split("val_loss ")[1].split(",")[0]) for line in lines if line.startswith("step")]
    assert outcome.steps == len(values) < 20
    assert outcome.best == pytest.approx(min(values), abs=1e-3)
    assert outcome.best < values[-1]
    assert len(list(one.checkpoints.glob("*.ckpt"))) == 2
    assert yaml.safe_load(json.dumps(outcome.record))["best"]["val_loss"] == pytest.approx(outcome.best, abs=1e-3)


def test_a_part_of_the_way(job, tmp_path):
    whole, part = job(output=str(tmp_path / "whole.nemo")), job(output=str(tmp_path / "part.nemo"), scale=0.25)
    fine_tune(whole), fine_tune(part)
    base, far, near = (open_checkpoint(path) for path in (whole.base, whole.output, part.output))
    for name in base:
        if base[name].is_floating_point():
            wanted = base[name].double() + 0.25 * (far[name].double() - base[name].double())
            torch.testing.assert_close(near[name].double(), wanted, rtol=1e-5, atol=1e-7)
    adapted = {"trainable": "lora", "adapter": LORA}
    whole, part = job(output=str(tmp_path / "a"), **adapted), job(output=str(tmp_path / "b"), scale=0.25, **adapted)
    fine_tune(whole), fine_tune(part)
    with open_checkpoint(whole.base) as base:
        far, near = (open_checkpoint(item.output).bind(base) for item in (whole, part))
        name = "encoder.layers.0.self_attn.linear_q.weight"
        torch.testing.assert_close(near.low_rank(name).left @ near.low_rank(name).right,
                                   0.25 * far.low_rank(name).left @ far.low_rank(name).right)  # fmt: skip


@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_regularisers_hold_the_model_near_its_base(home, job, tmp_path, trainable):
    fisher = str(tmp_path / "fisher.safetensors")
    ewc = {"name": "ewc", "gamma": 1e6, "fisher": fisher, "source": str(home / "train.json"), "utterances": 3}
    settings = {"none": None, "l2_sp": {"name": "l2_sp", "gamma": 1e5}, "ewc": ewc}
    if trainable == "lora":
        settings["l2"] = {"name": "l2", "gamma": 1e4}
    distances = {}
    lines = []
    for name, regulariser in settings.items():
        one = job(
            output=str(tmp_path / f"{name}.nemo"), regulariser=regulariser, trainable=trainable, steps=6,
            adapter=LORA if trainable == "lora" else {},
            optim={"name": "adamw", "lr": 1e-2, "weight_decay": 0.0},
        )  # fmt: skip
        fine_tune(one, lines.append)
        with open_checkpoint(one.base) as base, open_checkpoint(one.output) as output:
            names = [name for name in base if name.endswith("weight")]
            distances[name] = sum(float((output[name] - base[name]).square().sum()) for name in names)
    assert all(distance < distances["none"] for name, distance in distances.items() if name != "none")
    assert (tmp_path / "fisher.safetensors").is_file()
    again = dataclasses.replace(one, output=str(tmp_path / "again.nemo"), regulariser=ewc)
    fine_tune(again, lines.append)  # reads what the first run estimated
    assert any("Fisher information from" in line for line in lines)
    assert same(dict(open_checkpoint(tmp_path / "ewc.nemo")), dict(open_checkpoint(again.output)))


def test_fisher_information_is_the_mean_square_of_the_gradients_of_single_utterances(home, tmp_path):
    from nemo.collections.asr.models import ASRModel

    from nemo_merge.training.fisher import estimate_fisher, load_fisher, save_fisher
    from nemo_merge.training.sources import read_source

    model = ASRModel.restore_from(str(home / "ctc.nemo"), map_location="cpu")
    model.train()
    source = read_source(home / "train.json", "")
    found, count = estimate_fisher(model, source, 3)
    assert count == 3
    assert model.training

    import soundfile

    rows = [json.loads(line) for line in (home / "train.json").read_text().splitlines()][:3]
    labels = torch.tensor([[nemo_models.LABELS.index(letter) for letter in TEXT]])
    squares = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    model.eval()
    for row in rows:
        signal = torch.from_numpy(soundfile.read(row["audio_filepath"], dtype="float32")[0])[None]
        scores, frames, _ = model(input_signal=signal, input_signal_length=torch.tensor([signal.shape[1]]))
        loss = torch.nn.functional.ctc_loss(
            scores.transpose(0, 1),
            labels,
            frames,
            torch.tensor([len(TEXT)]),
            blank=len(nemo_models.LABELS),
            reduction="sum",
        )
        model.zero_grad()
        loss.backward()
        for name, value in model.named_parameters():
            if value.grad is not None:
                squares[name] += value.grad.square() / 3
    for name, value in squares.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6 * float(value.max()) + 1e-12)

    path = tmp_path / "fisher.safetensors"
    save_fisher(found, path, {"base": "abc"})
    assert same(load_fisher(path, "abc"), found)
    with pytest.raises(CheckpointError, match="about another base"):
        load_fisher(path, "def")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ctc", "hybrid", "attention"])
def test_pseudo_labels_are_what_the_model_hears(home, tmp_path, kind, monkeypatch):
    from nemo.collections.asr.models import ASRModel

    from nemo_merge.training.fisher import estimate_fisher
    from nemo_merge.training.sources import read_source

    heard = "o gato"
    rows = [json.loads(line) for line in (home / "train.json").read_text().splitlines()]
    for name, text in (("audio", "nada"), ("labelled", heard)):
        lines = [json.dumps({**row, "text": text}) + "\n" for row in rows]
        (tmp_path / f"{name}.json").write_text("".join(lines))
    model = ASRModel.restore_from(str(home / f"{kind}.nemo"), map_location="cpu")
    transcribe = model.transcribe
    asked = []

    def hear(audio, **options):  # an untrained model hears nothing that could be a label
        asked.append(transcribe(audio, **options)[0].text)
        return [type("Hypothesis", (), {"text": heard})]

    monkeypatch.setattr(model, "transcribe", hear)
    found, count = estimate_fisher(model, read_source(tmp_path / "audio.json", ""), 2, "pseudo")
    wanted, _ = estimate_fisher(model, read_source(tmp_path / "labelled.json", ""), 2)
    assert count == len(asked) == 2
    assert same(found, wanted)


def test_utterances_that_ctc_cannot_learn_are_counted_or_refused(home, job, tmp_path):
    rows = [json.loads(line) for line in (home / "train.json").read_text().splitlines()]
    for row in rows[:2]:
        row["text"] = "aa" * 40  # 119 frames needed, 25 a second are there
    some = tmp_path / "some.json"
    some.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = []
    fine_tune(job(train=[str(some)]), lines.append)
    assert any("2 of 12 utterances have fewer frames (25" in line for line in lines)
    some.write_text("".join(json.dumps({**row, "text": "aa" * 40}) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=r"12 of 12 utterances.*less subsampling"):
        fine_tune(job(train=[str(some)], output=str(tmp_path / "no.nemo")))
    assert not (tmp_path / "no.nemo").exists()


def test_transcripts_that_nemo_cannot_read_are_named(home, job, tmp_path):
    """NeMo's parser gives nothing for them, and its loader would stop with a TypeError in the middle of training."""
    from nemo.collections.common.parts.preprocessing.parsers import make_parser

    text = "press 5"
    if make_parser(labels=list(" abcdefghijklmnopqrstuvwxyz"), name="en")(text) is not None:
        pytest.skip("this version of NeMo's dependencies reads digits")
    rows = [json.loads(line) for line in (home / "train.json").read_text().splitlines()]
    rows[3]["text"] = text
    some = tmp_path / "some.json"
    some.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        ConfigError, match=r"cannot read 1 of 12 transcripts, for example 'press 5'.*loader.parser=base"
    ):
        fine_tune(job(train=[str(some)]))
    fine_tune(job(train=[str(some)], loader={"parser": "base"}))


def test_several_sources_and_batches_of_seconds(home, job):
    cuts = home / "cuts.jsonl.gz"
    from lhotse import CutSet, Recording, SupervisionSegment

    def cut(path):
        whole = Recording.from_file(path).to_cut()
        whole.supervisions = [SupervisionSegment(whole.id, whole.recording_id, 0, whole.duration, text=TEXT)]
        return whole

    CutSet.from_cuts(map(cut, sorted((home / "audio").glob("*.wav")))).to_file(cuts)
    one = job(train=[{"path": str(cuts), "weight": 1}, {"path": str(home / "train.json"), "weight": 3}],
              batch_size=None, batch_duration=6.0, loader={"max_duration": 1.9, "num_buckets": 2})  # fmt: skip
    outcome = fine_tune(one)
    assert [item["weight"] for item in outcome.record["train"]] == [1, 3]
    with pytest.raises(ConfigError, match=r"no setting 'max_durations'; did you mean 'max_duration'"):
        fine_tune(dataclasses.replace(one, loader={"max_durations": 2}, overwrite=True))


@pytest.mark.slow
def test_processes_train_together_as_the_job_says(job, tmp_path):
    """Two processes, each with its share of the data, an adapter and a term of the loss; twice the same."""
    outputs = []
    for name in "ab":
        one = job(output=str(tmp_path / name), devices=2, accelerator="cpu", trainable="lora", adapter=LORA, batch_size=2,
                  regulariser={"name": "l2", "gamma": 0.1})  # fmt: skip
        lines, other = [], []
        code = run_job(write_job(one, tmp_path / f"{name}.json"), one.processes, lines.append, other.append)
        assert code == 0, "".join(other)[-3000:]
        assert sum("written to" in line for line in lines) == 1
        outputs.append((tmp_path / name / "adapter_model.safetensors").read_bytes())
    assert outputs[0] == outputs[1]


def test_a_job_survives_its_file(job, tmp_path):
    one = job(validation={"dev": "d.json"}, trainable=["a", "b"], regulariser={"name": "l2_sp", "gamma": 1.0})
    assert read_job(write_job(one, tmp_path / "job.json")) == one
