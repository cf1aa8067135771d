"""Decoding with NeMo and Whisper: what is written, that it goes on after an interruption, and what is left out."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from nemo_merge.errors import AudioError, CheckpointError, ConfigError, OutputError
from nemo_merge.training import decoding_run
from nemo_merge.training.batches import packed
from nemo_merge.training.decode import DecodingJob, read_hypotheses, transcribe
from nemo_merge.training.jobs import write_job
from nemo_merge.training.recogniser import check_model
from nemo_merge.training.transcripts_file import only_writer
from nemo_merge.training.utterances import load_samples, read_test_set
from tests.fixtures.audio import write_audio, write_manifest

pytest.importorskip("lhotse")


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    pytest.importorskip("transformers")
    from tests.fixtures.whisper import write_whisper

    return write_whisper(tmp_path_factory.mktemp("models") / "whisper")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Ten files of 0.5 to 0.95 s."""
    folder = tmp_path_factory.mktemp("audio")
    write_audio(folder, 10, 0.5)
    return folder


@pytest.fixture(scope="module")
def nemo_models(tmp_path_factory):
    pytest.importorskip("nemo.collections.asr")
    from tests.fixtures import nemo_models as tiny

    folder = tmp_path_factory.mktemp("nemo")
    models = {
        "ctc": tiny.ctc(),
        "attention": tiny.attention(folder / "attention"),
        "hybrid": tiny.hybrid(folder / "hybrid"),
    }
    for name, model in models.items():
        model.save_to(str(folder / f"{name}.nemo"))
    return {name: folder / f"{name}.nemo" for name in models}


def decode(model, data, output, **options):
    said: list[str] = []
    DecodingJob({"m": model}, {"s": data}, output, **options).run(said.append)
    return {item.id: item for item in read_hypotheses(Path(output, "m", "s.jsonl"))}, said


def texts(found):
    return {name: item.pred_text for name, item in found.items()}


@pytest.mark.nemo
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ctc", {}),
        ("attention", {"language": "pt-PT"}),
        ("hybrid", {}),
        ("hybrid", {"decoder": "ctc"}),
        ("hybrid", {"beam": 2}),
    ],
)
def test_batches_do_not_change_what_nemo_models_hear(nemo_models, clips, tmp_path, kind, options):
    """What is heard is also what NeMo's own ``transcribe`` hears in the files, one by one."""
    model = nemo_models[kind]
    alone, _ = decode(model, clips, tmp_path / "alone", batch_size=1, **options)
    together, _ = decode(model, clips, tmp_path / "together", batch_size=4, **options)
    by_seconds, _ = decode(model, clips, tmp_path / "seconds", batch_seconds=2.0, **options)
    assert texts(alone) == texts(together) == texts(by_seconds)
    assert list(alone) == [f"clip_{index:02d}" for index in range(10)]
    assert all(texts(alone).values())
    if kind != "attention":  # which repeats one token, whatever it hears
        assert len({*texts(alone).values()}) > 1
    if options in ({}, {"language": "pt-PT"}):
        from nemo.collections.asr.models import ASRModel

        plain = ASRModel.restore_from(str(model), map_location="cpu")
        prompt = {"source_lang": "pt", "target_lang": "pt"} if options else {}
        heard = plain.transcribe([str(file) for file in sorted(clips.iterdir())], batch_size=1, verbose=False, **prompt)
        assert [item.text for item in heard] == list(texts(alone).values())


@pytest.mark.nemo
def test_beam_search_and_prompts_are_refused_where_there_are_none(nemo_models, clips, tmp_path, monkeypatch):
    for kind, options, message in (
        ("ctc", {"prompt": {"pnc": "yes"}}, "takes no prompt"),
        ("ctc", {"task": "translate"}, "cannot translate"),
        ("ctc", {"decoder": "rnnt"}, "no hybrid model"),
        ("attention", {"language": "fr"}, "knows no language 'fr'; known: pt"),
        ("attention", {"prompt": {"punct": "yes"}}, "no slot 'punct'; did you mean 'pnc'"),
        ("attention", {"task": "translate"}, "into which language"),
    ):
        with pytest.raises(ConfigError, match=message):
            decode(nemo_models[kind], clips, tmp_path / "refused", **options)
    from nemo.collections.asr.models import EncDecCTCModel

    monkeypatch.delattr(EncDecCTCModel, "change_decoding_strategy")
    with pytest.raises(ConfigError, match="no beam search for EncDecCTCModel"):
        decode(nemo_models["ctc"], clips, tmp_path / "refused", beam=4)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_whisper_is_asked_in_the_language_of_the_utterance(whisper, clips, tmp_path):
    by_language = {tag: texts(decode(whisper, clips, tmp_path / tag, language=tag)[0]) for tag in ("pt-PT", "en")}
    assert by_language["pt-PT"] != by_language["en"]
    files = sorted(clips.iterdir())
    rows = [{"audio_filepath": str(file), "lang": "en" if i % 2 else None} for i, file in enumerate(files)]
    manifest = tmp_path / "mixed.json"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, _ = decode(whisper, manifest, tmp_path / "mixed", language="pt-PT", batch_size=3)
    for index, file in enumerate(files):
        tag = "en" if index % 2 else "pt-PT"
        assert found[str(file)].pred_text == by_language[tag][file.stem]
        assert found[str(file)].lang == tag
    beam, _ = decode(whisper, clips, tmp_path / "beam", language="pt", beam=3)
    assert texts(beam) != by_language["pt-PT"]
    with pytest.raises(ConfigError, match="knows no language 'xx'; known: en, es, pt"):
        decode(whisper, clips, tmp_path / "none", language="xx")


def test_cuts_are_parts_of_recordings(whisper, clips, tmp_path):
    """Offsets and channels are those of the cut, whatever the sampling rate."""
    parts = [soundfile.read(file, dtype="float32")[0] for file in sorted(clips.iterdir())[:3]]
    silent = [np.zeros(4000, np.float32)]
    whole = np.concatenate([piece for part in parts for piece in (part, *silent)])
    soundfile.write(tmp_path / "long.wav", np.stack([whole, whole[::-1]], 1), 16000, subtype="FLOAT")
    from lhotse import CutSet, Recording, SupervisionSegment
    from lhotse.cut import MultiCut

    recording = Recording.from_file(tmp_path / "long.wav")
    cuts, start = [], 0.0
    for index, part in enumerate(parts):
        cut = recording.to_cut().truncate(offset=start, duration=len(part) / 16000)
        said = SupervisionSegment(f"u{index}", recording.id, 0, cut.duration, 0, f"text {index}", "pt", "ana")
        cuts.append(cut.with_id(f"c{index}").with_channels(0))
        cuts[-1].supervisions = [said]
        start += len(part) / 16000 + 0.25
    assert not isinstance(cuts[0], MultiCut)
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    found, _ = decode(whisper, tmp_path / "cuts.jsonl.gz", tmp_path / "out", language="pt")
    alone, _ = decode(whisper, clips, tmp_path / "alone", language="pt")
    assert [item.pred_text for item in found.values()] == [alone[f"clip_0{index}"].pred_text for index in range(3)]
    second = found["u1"]
    assert (second.text, second.lang, second.speaker, second.audio_filepath) == (
        "text 1", "pt", "ana", str(tmp_path / "long.wav"),
    )  # fmt: skip
    assert second.offset == pytest.approx(len(parts[0]) / 16000 + 0.25)


def test_channels_rates_and_mixes(tmp_path):
    time_axis = np.arange(16000) / 16000
    left, right = (np.sin(2 * np.pi * f * time_axis).astype(np.float32) / 2 for f in (300, 700))
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 16000, subtype="FLOAT")
    manifest = tmp_path / "m.json"
    manifest.write_text('{"audio_filepath": "a.wav"}\n{"audio_filepath": "a.wav", "channel": 1, "offset": 0.25}\n')
    both, chosen = read_test_set(manifest).utterances
    with pytest.raises(AudioError, match="has 2 channels"):
        load_samples(both, 16000)
    np.testing.assert_array_equal(load_samples(both, 16000, 0), left)
    np.testing.assert_allclose(load_samples(both, 16000, "mix"), (left + right) / 2, atol=1e-7)
    np.testing.assert_array_equal(load_samples(chosen, 16000, 0), right[4000:])
    half = load_samples(both, 8000, 0)
    assert half.shape == (8000,)
    assert np.abs(half[1000:-1000] - left[2000:-2000:2]).max() < 1e-2
    with pytest.raises(AudioError, match="no channel 2"):
        load_samples(both, 16000, 2)


def test_mixed_cuts_and_several_supervisions(tmp_path):
    from lhotse import CutSet, Recording, SupervisionSegment

    files = write_audio(tmp_path / "audio", 2, 1.0)
    one, two = (Recording.from_file(file).to_cut() for file in files)
    for index, cut in enumerate((one, two)):
        cut.supervisions = [SupervisionSegment(f"s{index}", cut.recording_id, 0, 0.5, text=f"part {index}")]
    joined = one.append(two)
    CutSet.from_cuts([joined.with_id("joined")]).to_file(tmp_path / "cuts.jsonl.gz")
    (utterance,) = read_test_set(tmp_path / "cuts.jsonl.gz").utterances
    assert (utterance.id, utterance.text) == ("joined", "part 0 part 1")
    assert utterance.duration == pytest.approx(joined.duration)
    assert len(load_samples(utterance, 16000)) == pytest.approx(joined.duration * 16000, abs=2)


def test_a_run_that_was_killed_goes_on_with_the_same_batches(whisper, clips, tmp_path, monkeypatch):
    whole = decode(whisper, clips, tmp_path / "whole", batch_size=3, language="pt")[0]
    made, add = [], decoding_run.TranscriptsFile.add

    def add_two(self, hypotheses):
        if len(made) == 2:
            with open(tmp_path / "parts" / "m" / ".s.partial.jsonl", "a") as file:
                file.write('{"id": "clip_00", "pred_te')  # the line that the kill cut short
            raise KeyboardInterrupt
        made.append([item.id for item in hypotheses])
        add(self, hypotheses)

    monkeypatch.setattr(decoding_run.TranscriptsFile, "add", add_two)
    with pytest.raises(KeyboardInterrupt):
        decode(whisper, clips, tmp_path / "parts", batch_size=3, language="pt")
    assert not (tmp_path / "parts" / "m" / "s.jsonl").exists()
    monkeypatch.setattr(
        decoding_run.TranscriptsFile, "add", lambda self, h: (made.append([item.id for item in h]), add(self, h))
    )
    decode(whisper, clips, tmp_path / "parts", batch_size=3, language="pt")
    assert sorted(name for batch in made for name in batch) == sorted(whole)
    assert [len(batch) for batch in made] == [3, 3, 3, 1]
    for name in ("s.jsonl", "s.yaml"):
        assert (tmp_path / "parts" / "m" / name).read_bytes() == (tmp_path / "whole" / "m" / name).read_bytes()
    assert sorted(file.name for file in (tmp_path / "parts" / "m").iterdir()) == ["s.jsonl", "s.yaml"]


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_what_it_had(whisper, tmp_path):
    files = write_audio(tmp_path / "audio", 4, 0.5) * 50
    rows = [{"id": f"u{i}", "audio_filepath": str(file)} for i, file in enumerate(files)]
    (tmp_path / "m.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = DecodingJob({"m": whisper}, {"s": tmp_path / "m.json"}, tmp_path / "out", 1, language="pt")
    command = [sys.executable, "-m", "nemo_merge.training", str(write_job(job, tmp_path / "job.json"))]
    journal = tmp_path / "out" / "m" / ".s.partial.jsonl"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 5):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    before = journal.read_bytes().count(b"\n") - 1
    assert 5 <= before < 200
    found, _ = decode(whisper, tmp_path / "m.json", tmp_path / "out", batch_size=1, language="pt")
    whole, _ = decode(whisper, tmp_path / "m.json", tmp_path / "whole", batch_size=1, language="pt")
    assert found == whole


def test_another_model_never_continues(whisper, clips, tmp_path):
    from tests.fixtures.whisper import write_whisper

    other = write_whisper(tmp_path / "other", seed=1)
    first, _ = decode(whisper, clips, tmp_path / "out", language="pt")
    note = yaml.safe_load((tmp_path / "out" / "m" / "s.yaml").read_text())
    assert (note["model"], note["utterances"], note["skipped"]) == (str(whisper), 10, {})
    _, said = decode(whisper, clips, tmp_path / "out", language="pt")
    assert said == ["m: s was decoded before", "m: decoded"]
    with pytest.raises(OutputError, match=r"another model \(SHA-256 "):
        decode(other, clips, tmp_path / "out", language="pt")
    with pytest.raises(OutputError, match="language='pt' instead of 'es'"):
        decode(whisper, clips, tmp_path / "out", language="es")
    with pytest.raises(OutputError, match="another data"):
        decode(whisper, write_manifest(tmp_path / "m.json", sorted(clips.iterdir())), tmp_path / "out", language="pt")
    assert read_hypotheses(tmp_path / "out" / "m" / "s.jsonl") == list(first.values())
    second, _ = decode(other, clips, tmp_path / "out", language="pt", overwrite=True)
    assert texts(second) != texts(first)
    (tmp_path / "out" / "m" / "s.yaml").unlink()
    with pytest.raises(OutputError, match="not noted"):
        decode(other, clips, tmp_path / "out", language="pt")


def test_two_processes_do_not_write_into_one_folder(whisper, clips, tmp_path):
    with only_writer(tmp_path / "out" / "m"), pytest.raises(OutputError, match="another process"):
        decode(whisper, clips, tmp_path / "out")
    assert not list((tmp_path / "out" / "m").iterdir())


def test_what_cannot_be_decoded_is_left_out_and_tried_again(whisper, tmp_path):
    files = write_audio(tmp_path / "audio", 3, 0.5)
    (tmp_path / "damaged.wav").write_bytes(b"RIFF")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16000)
    soundfile.write(tmp_path / "long.wav", np.ones(16000 * 3, np.float32) / 9, 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    rows = [{"id": f"good{i}", "audio_filepath": str(file), "text": "a"} for i, file in enumerate(files)]
    rows += [{"id": name, "audio_filepath": f"{name}.wav"} for name in ("damaged", "empty", "long", "nan", "missing")]
    rows += [
        {"id": "short", "audio_filepath": str(files[0]), "duration": 2.0},
        {"id": "beyond", "audio_filepath": str(files[0]), "offset": 4.0},
        {"id": "good0", "audio_filepath": str(files[1])},
    ]
    manifest = tmp_path / "m.json"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, said = decode(whisper, manifest, tmp_path / "out", language="pt")
    assert list(found) == ["good0", "good1", "good2"]
    skipped = yaml.safe_load((tmp_path / "out" / "m" / "s.yaml").read_text())["skipped"]
    for name, reason in {
        "damaged": "cannot be read as audio",
        "empty": "",
        "long": "has 3.0 s, but the model hears 2 s at once",
        "nan": "not finite",
        "missing": "does not exist",
        "short": "2.00 s are needed",
        "beyond": "are needed",
        "good0 (again)": "ids must differ",
    }.items():
        assert reason in skipped[name]
        assert any(f" {name}: " in line for line in said)
    assert f"m: s, 3 utterances, {len(skipped)} left out" in said
    with pytest.raises(AudioError, match="does not exist"):
        decode(whisper, manifest, tmp_path / "strict", language="pt", strict=True)
    soundfile.write(tmp_path / "damaged.wav", np.ones(16000, np.float32) / 9, 16000)
    again, _ = decode(whisper, manifest, tmp_path / "out", language="pt")
    assert list(again) == ["good0", "good1", "good2", "damaged"]
    assert {name: again[name] for name in found} == found


def test_nothing_to_decode_is_an_error(whisper, tmp_path):
    (tmp_path / "m.json").write_text('{"audio_filepath": "none.wav"}\n')
    with pytest.raises(AudioError, match=r"no utterance can be decoded; none.wav: .*none.wav does not exist"):
        decode(whisper, tmp_path / "m.json", tmp_path / "out")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "cuts.000000.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    (tmp_path / "nothing").mkdir()
    for name, message in (("shards", "Lhotse shards"), ("nothing", "no audio"), ("missing", "no such file")):
        with pytest.raises(AudioError, match=message):
            read_test_set(tmp_path / name)


def test_long_recordings_are_cut_where_they_are_silent(whisper, clips, tmp_path):
    parts = [soundfile.read(file, dtype="float32")[0] for file in sorted(clips.iterdir())]
    pause = np.zeros(16000, np.float32)
    soundfile.write(tmp_path / "long.wav", np.concatenate([x for part in parts for x in (part, pause)]), 16000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000, np.float32), 16000)
    (tmp_path / "m.json").write_text(
        '{"id": "long", "audio_filepath": "long.wav"}\n{"id": "silent", "audio_filepath": "silent.wav"}\n'
    )
    found, _ = decode(whisper, tmp_path / "m.json", tmp_path / "out", language="pt", vad={"padding": 0.0}, batch_size=4)
    segments = found["long"].segments
    assert [segment.text for segment in segments if segment.text]
    assert found["long"].pred_text == " ".join(segment.text for segment in segments if segment.text)
    start = 0.0
    assert len(segments) == len(parts)
    for segment, part in zip(segments, parts, strict=True):
        assert segment.start == pytest.approx(start, abs=0.07)
        assert segment.end == pytest.approx(start + len(part) / 16000, abs=0.07)
        start += len(part) / 16000 + 1.0
    assert (found["silent"].pred_text, found["silent"].segments) == ("", [])


def test_batches_keep_to_their_limits():
    seconds = [float(x) for x in np.random.default_rng(0).uniform(1, 20, 100)]
    for size, limit in ((8, None), (100, 60.0), (4, 60.0), (3, 0.5)):
        batches = list(packed(seconds, lambda item: item, size, limit))
        assert sorted(item for batch in batches for item in batch) == sorted(seconds)
        assert all(len(batch) <= size for batch in batches)
        assert all(len(batch) == 1 or len(batch) * batch[0] <= (limit or 1e9) for batch in batches)
        assert [batch[0] for batch in batches] == sorted((batch[0] for batch in batches), reverse=True)


def test_folders_that_lack_files_are_refused(whisper, tmp_path):
    import shutil

    for missing, message in (
        ("tokenizer.json", "lacks the tokenizer"),
        ("preprocessor_config.json", "lacks the feature extractor"),
        ("model.safetensors", "lacks the weights"),
        ("config.json", "no readable config.json"),
    ):
        folder = tmp_path / missing
        shutil.copytree(whisper, folder)
        (folder / missing).unlink()
        with pytest.raises(CheckpointError, match=message):
            check_model(folder)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="type 'bert'"):
        check_model(tmp_path / "bert")


def test_transcribe_gives_what_it_writes(whisper, clips, tmp_path):
    found = transcribe(whisper, {"s": clips}, tmp_path / "exp" / "base")
    assert found["s"] == read_hypotheses(tmp_path / "exp" / "base" / "s.jsonl")
    assert transcribe(whisper, {"s": clips}, tmp_path / "exp" / "base") == found
