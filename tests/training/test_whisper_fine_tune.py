"""Fine-tuning of a tiny Whisper: what it learns, what is trained, what is repeated, what is left behind."""

from __future__ import annotations

import dataclasses
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from nemo_merge import merge, open_checkpoint
from nemo_merge.errors import AudioError, CheckpointError, ConfigError
from nemo_merge.training.jobs import read_job, write_job
from nemo_merge.training.processes import run_job
from nemo_merge.training.whisper_base import is_whisper, whisper_folder
from nemo_merge.training.whisper_fine_tune import WhisperFineTuningJob, fine_tune_whisper
from tests.fixtures.audio import write_audio, write_manifest
from tests.fixtures.models import same

needed = ("transformers", "accelerate", "lhotse", "soundfile")
pytestmark = pytest.mark.skipif(any(map(lambda name: find_spec(name) is None, needed)), reason="extra whisper")

WORDS = ["o gato preto", "a menina viu o barco", "bom dia"]
LORA = {"r": 4, "lora_alpha": 8}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    from tests.fixtures.whisper import write_whisper

    folder = tmp_path_factory.mktemp("whisper")
    write_whisper(folder / "base", init_std=0.1)
    rows = [
        json.loads(line)
        for line in write_manifest(folder / "train.json", write_audio(folder / "audio", 6, 0.6))
        .read_text()
        .splitlines()
    ]
    for index, row in enumerate(rows):
        row.update(id=f"u{index}", text=WORDS[index % 3], lang="pt-PT")
    (folder / "train.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def job(home, tmp_path):
    """A job of three steps with everything that a job must have; other fields by keyword."""

    def make(**fields):
        return WhisperFineTuningJob(**{
            "base": str(home / "base"),
            "output": str(tmp_path / "tuned"),
            "train": [str(home / "train.json")],
            "steps": None if "epochs" in fields else 3,
            "batch_size": 4,
            "optim": {"lr": 1e-2, "sched": {"name": "cosine", "warmup_steps": 1}},
            "accelerator": "cpu",
            **fields,
        })  # fmt: skip

    return make


@pytest.fixture(scope="module")
def parts(home):
    from nemo_merge.training.whisper_model import load_whisper

    return load_whisper(home / "base")


def losses(lines):
    return [float(line.split("loss ")[1].split(",")[0]) for line in lines if ", loss " in line]


def changed(job):
    with open_checkpoint(job.base) as base, open_checkpoint(job.output) as output:
        assert base.keys() == output.keys()
        return {name for name in base if not torch.equal(base[name], output[name])}


def test_a_few_utterances_are_learnt_by_heart_and_decoded(home, job, tmp_path):
    from nemo_merge.training.decode import transcribe

    lines = []
    one = job(steps=120, batch_size=6, validation={"dev": str(home / "train.json")}, select="val_wer",
              validate_every=60)  # fmt: skip
    outcome = fine_tune_whisper(one, lines.append)
    assert losses(lines)[-1] < 0.1 * losses(lines)[0]
    assert outcome.best == pytest.approx(0.0)
    heard = transcribe(one.output, {"train": home / "train.json"}, tmp_path / "decode" / "tuned")["train"]
    assert [item.pred_text for item in heard] == [item.text for item in heard]
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "generation_config.json"):
        assert (Path(one.output) / name).read_bytes() == (home / "base" / name).read_bytes()
    record = open_checkpoint(one.output).metadata.provenance
    assert record["steps_done"] == 120
    assert record["base"]["sha256"] == open_checkpoint(one.base).sha256()
    assert not one.checkpoints.exists()


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"trainable": "full"}, lambda name: name != "model.encoder.embed_positions.weight"),
        ({"trainable": "encoder"}, lambda name: name.startswith("model.encoder.") and "embed_positions" not in name),
        ({"trainable": "decoder"}, lambda name: name.startswith("model.decoder.")),
        ({"trainable": [r"encoder_attn\.q_proj"]}, lambda name: "encoder_attn.q_proj" in name),
        ({"trainable": "lora", "adapter": LORA}, lambda name: "_proj.weight" in name),
        ({"trainable": "bayesian_lora", "adapter": LORA}, lambda name: "_proj.weight" in name),
    ],
    ids=["full", "encoder", "decoder", "patterns", "lora", "bayesian_lora"],
)
def test_only_what_is_trained_changes(job, fields, wanted):
    if "adapter" in fields:
        pytest.importorskip("peft")
    one = job(**fields, merge_adapter="adapter" in fields)
    fine_tune_whisper(one)
    with open_checkpoint(one.base) as base:
        expected = {name for name in base if wanted(name)}
    assert changed(one) == expected


@pytest.mark.slow
def test_an_adapter_gives_the_merged_model(home, job, tmp_path):
    pytest.importorskip("peft")
    folder, whole = (
        job(output=str(tmp_path / "a"), trainable="lora", adapter=LORA),
        job(output=str(tmp_path / "b"), trainable="lora", adapter=LORA, merge_adapter=True),
    )
    fine_tune_whisper(folder), fine_tune_whisper(whole)
    merge(folder.base, [folder.output], "task_arithmetic", scale=1.0, output=tmp_path / "merged")
    with open_checkpoint(tmp_path / "merged") as merged, open_checkpoint(whole.output) as wanted:
        for name in wanted:
            torch.testing.assert_close(merged[name], wanted[name])


def test_labels_ask_for_the_language_and_begin_with_a_space(parts):
    names = parts.tokenizer.convert_ids_to_tokens
    assert names(parts.labels("o gato ", "pt", "translate")[:3]) == ["<|pt|>", "<|translate|>", "<|notimestamps|>"]
    assert parts.tokenizer.decode(parts.labels("o gato ", "pt", "transcribe")[3:-1]) == " o gato"
    assert names(parts.labels("", "en", "transcribe"))[3:] == ["<|endoftext|>"]


def test_batches_of_a_step_count_by_their_tokens(home, parts):
    """However a step is cut into batches, its gradient is that of the mean over all of its tokens."""
    from nemo_merge.training.whisper_data import IGNORED, Collator, read_examples
    from nemo_merge.training.whisper_trainer import token_loss

    made = WhisperFineTuningJob(parts.path, "x", [str(home / "train.json")], language="pt")
    data = read_examples(made.sources(), made, parts, "train", print)
    items, collate = [data[index] for index in range(6)], Collator(parts)
    parts.model.eval()

    def loss(batch, tokens=None):
        labels = batch.pop("labels")
        return token_loss(parts.model(**batch), labels, tokens), int((labels != IGNORED).sum())

    whole, tokens = loss(collate(items))
    cut = [loss(collate(group), tokens)[0] for group in (items[:1], items[1:3], items[3:])]
    torch.testing.assert_close(sum(cut), whole)
    batch = collate(items[:1])
    torch.testing.assert_close(parts.model(**batch).loss, loss(batch)[0])  # without padding as transformers computes it


@pytest.mark.slow
def test_an_interrupted_run_ends_like_one_that_was_not(job, tmp_path, monkeypatch):
    from nemo_merge.training import whisper_trainer

    # Over three epochs, and with all noise that there is.
    settings = {"steps": 6, "batch_size": 3, "checkpoint_every": 2,
                "spec_augment": {"mask_time_prob": 0.1, "mask_feature_prob": 0.2}}  # fmt: skip
    straight = job(output=str(tmp_path / "straight"), **settings)
    fine_tune_whisper(straight)

    class Interruption(Exception):
        pass

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise Interruption

    broken = job(output=str(tmp_path / "broken"), **settings)
    with monkeypatch.context() as patch:
        patch.setattr(whisper_trainer.Reporter, "on_step_end", stop)
        with pytest.raises(Interruption):
            fine_tune_whisper(broken)
    assert not Path(broken.output).exists()
    (broken.checkpoints / "checkpoint-4" / "trainer_state.json").rename(tmp_path / "state")  # half of a checkpoint
    with pytest.raises(ConfigError, match="is of a run with other settings"):
        fine_tune_whisper(dataclasses.replace(broken, seed=1))
    lines = []
    fine_tune_whisper(broken, lines.append)
    assert any(line.endswith("checkpoint-2") for line in lines)
    assert same(dict(open_checkpoint(straight.output)), dict(open_checkpoint(broken.output)))
    other = job(output=str(tmp_path / "other"), **{**settings, "spec_augment": False})
    fine_tune_whisper(other)
    assert not same(dict(open_checkpoint(straight.output)), dict(open_checkpoint(other.output)))
    config = json.loads((Path(straight.output) / "config.json").read_text())
    assert config["apply_spec_augment"] is False
    assert config["mask_time_prob"] == 0.05  # the base's, not the job's


@pytest.mark.slow
def test_the_best_weights_are_kept_and_training_stops_early(home, job):
    lines = []
    one = job(steps=20, optim={"lr": 3.0}, validation={"a": str(home / "train.json"), "b": str(home / "train.json")},
              select="val_loss", validate_every=1, patience=2)  # fmt: skip
    outcome = fine_tune_whisper(one, lines.append)
    values = [float(line.split("val_loss ")[1]) for line in lines if ": val_loss" in line]
    assert outcome.steps == len(values) < 20
    assert outcome.best == pytest.approx(min(values), abs=1e-3)
    again = []
    fine_tune_whisper(job(base=one.output, output=f"{one.output}-again", steps=1, optim={"lr": 1e-12}, validate_every=1,
                          validation={"a": str(home / "train.json")}), again.append)  # fmt: skip
    (value,) = [float(line.split("val_loss ")[1]) for line in again if ": val_loss" in line]
    assert value == pytest.approx(outcome.best, abs=2e-3)


def test_weights_of_sources_are_shares_of_the_batches(home):
    from nemo_merge.training.utterances import Utterance
    from nemo_merge.training.whisper_data import Example, Shuffled

    item = Utterance("u", 1.0)
    order = Shuffled([Example(item, [1], None, "transcribe")] * 50, seed=3)
    first, _ = list(order), order.set_epoch(1)
    assert sorted(first) == sorted(order) == list(range(50))
    assert first != list(order)
    mixed = [Example(item, [1], None, "transcribe", weight=share) for share in [3.0 / 10] * 10 + [1.0 / 990] * 990]
    drawn = list(Shuffled(mixed, seed=0))
    assert sum(index < 10 for index in drawn) / len(drawn) == pytest.approx(0.75, abs=0.05)


def test_what_cannot_be_learnt_is_counted_or_refused(home, parts, job, tmp_path):
    from nemo_merge.training.whisper_data import read_examples

    rows = [json.loads(line) for line in (home / "train.json").read_text().splitlines()]
    rows[0]["duration"] = 2.5
    del rows[1]["text"]
    rows[2]["text"] = "o gato preto " * 20
    rows[3]["audio_filepath"] = "gone.wav"
    path = tmp_path / "bad.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = []
    one = job(train=[str(path)])
    found = read_examples(one.sources(), one, parts, "train", lines.append)
    assert [item.utterance.id for item in found.examples] == ["u4", "u5"]
    for reason in (
        "longer than 2 s, for example u0",
        "no transcript",
        "more than 14 tokens",
        "gone.wav does not exist",
    ):
        assert any(reason in line for line in lines)
    (tmp_path / "noise.wav").write_bytes(b"no audio")
    rows[4]["audio_filepath"] = str(tmp_path / "noise.wav")
    path.write_text(json.dumps(rows[4]) + "\n")
    with pytest.raises(AudioError, match="utterance 'u4'"):
        fine_tune_whisper(one)
    path.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(ConfigError, match="train: no utterance is left"):
        fine_tune_whisper(one)
    path.write_text(json.dumps({**rows[5], "lang": "xx"}) + "\n")
    with pytest.raises(ConfigError, match=r"'u5': .*knows no language 'xx'"):
        fine_tune_whisper(one)
    path.write_text(json.dumps({**rows[5], "lang": None}) + "\n")
    with pytest.raises(ConfigError, match="says no language"):
        fine_tune_whisper(one)
    tagged = dataclasses.replace(one, train=[{"path": str(path), "tags": {"lang": "es", "task": "translate"}}])
    (example,) = read_examples(tagged.sources(), tagged, parts, "train", print).examples
    assert (example.language, example.task) == ("es", "translate")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base": "nowhere"}, "nowhere"),
        ({"output": "x.nemo"}, "a Whisper is a folder; leave out .nemo"),
        ({"steps": None}, "give either steps or epochs"),
        ({"optim": {"lr": 1e-5, "momentum": 1}}, "optim: there is no setting 'momentum'"),
        ({"precision": "bf16"}, "did you mean 'bf16-mixed'"),
        ({"batch_size": 0}, "batch_size=0 is not above 0"),
        ({"task": "translat"}, "did you mean 'translate'"),
        ({"spec_augment": {"time_masks": 2}}, "spec_augment: there is no setting 'time_masks'"),
        ({"merge_adapter": True}, "merge_adapter: is for trainable=lora"),
        ({"select": "val_wer"}, "needs validation data"),
        ({"text": "whisper_basics"}, "did you mean 'whisper_basic'"),
        ({"trainer": {"output_dir": "x"}}, "trainer: output_dir is set by the job's own settings"),
        ({"trainer": {"label_smoothing": 0.1}}, "did you mean 'label_smoothing_factor'"),
        ({"optim": {"lr": 1e-5, "name": "adam"}}, "transformers refuses the settings"),
        ({"optim": {"lr": 1e-5, "sched": {"name": "noam"}}}, "transformers refuses the settings"),
        ({"trainable": ["nothing"]}, "no parameter has a name with 'nothing'"),
    ],
)
def test_bad_settings_are_refused_before_training(job, fields, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, CheckpointError), match=message):
        fine_tune_whisper(job(**fields))


def test_bases_are_folders_or_names_of_the_hub(home, tmp_path, monkeypatch):
    assert is_whisper(home / "base")
    assert is_whisper("openai/whisper-large-v3")
    assert not any(map(is_whisper, ("base.nemo", "folder/base.nemo", str(tmp_path))))
    hub = pytest.importorskip("huggingface_hub")
    asked = {}

    def download(name, revision, allow_patterns):
        asked.update(name=name, revision=revision)
        return str(home / "base")

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert whisper_folder("openai/whisper-large-v3", "abc") == home / "base"
    assert asked == {"name": "openai/whisper-large-v3", "revision": "abc"}

    def refuse(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=r"neither a folder here, nor .*no network"):
        whisper_folder("openai/whisper-large-v3")


def test_tables_of_tokens_must_fit(home, tmp_path):
    import shutil

    from nemo_merge.training.whisper_model import load_whisper

    shutil.copytree(home / "base", tmp_path / "w")
    path = tmp_path / "w" / "generation_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "lang_to_id": {"<|pt|>": 3}}))
    with pytest.raises(CheckpointError, match=r"<\|pt\|> is 3 in generation_config.json and \d+ in the tokenizer"):
        load_whisper(tmp_path / "w")
    path.write_text(json.dumps({key: value for key, value in settings.items() if key != "task_to_id"}))
    with pytest.raises(CheckpointError, match="has no task_to_id"):
        load_whisper(tmp_path / "w")


def test_a_base_in_half_precision_is_trained_and_decoded_in_single(home, job, tmp_path):
    import shutil

    from transformers import WhisperForConditionalGeneration

    from nemo_merge.training.decode import transcribe

    shutil.copytree(home / "base", tmp_path / "half")
    WhisperForConditionalGeneration.from_pretrained(home / "base").half().save_pretrained(tmp_path / "half")
    one = job(base=str(tmp_path / "half"))
    fine_tune_whisper(one)
    small = dataclasses.replace(one, output=str(tmp_path / "small"), store="bfloat16")
    fine_tune_whisper(small)
    with open_checkpoint(one.output) as whole, open_checkpoint(small.output) as part:
        name = "model.decoder.layers.0.fc1.weight"
        assert whole[name].dtype == torch.float32
        assert torch.equal(part[name], whole[name].bfloat16())
        merge(one.base, [one.output], "soup", output=tmp_path / "merged")
        assert open_checkpoint(tmp_path / "merged")[name].dtype == torch.float16  # the base's
    assert len(transcribe(tmp_path / "half", {"s": home / "train.json"}, tmp_path / "decode" / "half")["s"]) == 6


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(home, job, tmp_path):
    common = {"epochs": 2, "gradient_checkpointing": True, "select": "val_loss",
              "validation": {"dev": str(home / "train.json")}}  # fmt: skip
    alone = job(output=str(tmp_path / "alone"), batch_size=3, accumulate=1, **common)
    pair = job(output=str(tmp_path / "pair"), batch_size=3, devices=2, **common)
    accumulated = job(output=str(tmp_path / "accumulated"), batch_size=3, accumulate=2, **common)
    doubled = job(output=str(tmp_path / "doubled"), batch_size=6, **common)
    lines = []
    assert run_job(write_job(pair, tmp_path / "pair.json"), 2, lines.append, print) == 0
    assert read_job(tmp_path / "pair.json") == pair
    for one in (alone, accumulated, doubled):
        fine_tune_whisper(one)
    found = {one.output: dict(open_checkpoint(one.output)) for one in (alone, pair, accumulated, doubled)}
    for name, value in found[doubled.output].items():
        torch.testing.assert_close(found[pair.output][name], value, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found[accumulated.output][name], value, rtol=1e-3, atol=1e-5)
    assert not same(found[alone.output], found[doubled.output])
    assert len([line for line in lines if "written to" in line]) == 1
