"""``nemo-merge decode``: what is found wrong before a model runs, and runs whose output ``nemo-merge score`` reads."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from tests.fixtures.audio import write_audio
from tests.fixtures.models import state_dict, write_nemo

pytestmark = pytest.mark.skipif(find_spec("lhotse") is None, reason="Lhotse is not installed")


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = write_audio(tmp_path / "audio", 3, 0.5)
    rows = [{"audio_filepath": f"audio/{file.name}", "text": "bom dia a todos", "lang": "pt"} for file in files]
    (tmp_path / "m.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_nemo(tmp_path / "base.nemo", state_dict())
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.nemo", "--data", "m.json"], "none.nemo: there is no such model"),
        (["m.json", "--data", "m.json"], "m.json: is neither a .nemo file nor the folder"),
        (["audio", "--data", "m.json"], "audio: no readable config.json"),
        (["base.nemo", "--data", "none.json"], "none.json: no such file or folder"),
        (["base.nemo", "--data", "base.nemo"], "base.nemo: of an unknown format"),
        (["base.nemo", "--data", "m.json", "--data", "audio/../m.json"], "two test sets are called 'm'"),
        (["base.nemo", "audio/../base.nemo", "--data", "m.json"], "two models are called 'base'"),
        (["a/b=base.nemo", "--data", "m.json"], "'a/b' cannot be the name of a file"),
        (["base.nemo", "--data", "m.json", "--vad-set", "pauses=1"], "no setting 'pauses'; did you mean 'pause'"),
        (["base.nemo", "--data", "m.json", "--vad-set", "pause=x"], "could not convert"),
        (["base.nemo", "--data", "m.json", "--vad-set", "longest=0.1"], "longest=0.1 is out of range"),
        (["base.nemo", "--data", "m.json", "--prompt", "pnc"], "--prompt pnc: expected KEY=VALUE"),
        (["base.nemo", "--data", "m.json", "--channel", "left"], "--channel left: is neither a number nor mix"),
        (["base.nemo", "--data", "m.json", "--output", "m.json"], "m.json: is a file"),
        (["base.nemo", "--data", "gone.json", "--strict"], "audio/gone.wav does not exist"),
    ],
)
def test_what_is_wrong_is_found_before_a_model_runs(files, monkeypatch, arguments, message, command_line):
    (files / "gone.json").write_text('{"audio_filepath": "audio/gone.wav", "duration": 1.0}\n')
    if "--output" not in arguments:
        arguments = [*arguments, "--output", "out"]
    monkeypatch.setattr("nemo_merge.training.recogniser._installed", lambda package: True)
    code, _, err = command_line("decode", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not (files / "out").exists()


def test_libraries_that_are_not_installed_are_named(files, monkeypatch, command_line):
    for absent, message in (("nemo", "nemo-merge[nemo]"), ("lhotse", "nemo-merge[lhotse]")):
        monkeypatch.setattr("nemo_merge.training.recogniser._installed", lambda name, absent=absent: name != absent)
        code, _, err = command_line("decode", "base.nemo", "--data", "m.json", "--output", "out")
        assert (code, message in err) == (2, True)


@pytest.mark.slow
def test_whisper_is_decoded_and_scored(files, command_line):
    pytest.importorskip("transformers")
    pytest.importorskip("rapidfuzz")
    from tests.fixtures.whisper import write_whisper

    write_whisper(files / "first")
    write_whisper(files / "second", seed=1)
    command = ["decode", "first", "other=second", "--data", "m.json", "--cuts", "folder=audio", "--output", "out"]
    code, out, err = command_line(*command, "--threads", 1, "--language", "en", "--batch-seconds", 1.2)
    assert code == 0, err + (files / "out.log").read_text()
    assert "first: m, 3 utterances" in err
    assert "[progress]" not in err + (files / "out.log").read_text()
    names = sorted(str(path.relative_to(files / "out")) for path in (files / "out").rglob("*.jsonl"))
    assert names == ["first/folder.jsonl", "first/m.jsonl", "other/folder.jsonl", "other/m.jsonl"]
    row = json.loads((files / "out" / "other" / "m.jsonl").read_text().splitlines()[1])
    assert (row["id"], row["text"], row["lang"]) == ("audio/clip_01.wav", "bom dia a todos", "pt")
    assert row["duration"] == pytest.approx(0.55)
    both = [files / "out" / name / "m.jsonl" for name in ("first", "other")]
    code, out, err = command_line("score", files / "m.json", *both, "--format", "json")
    assert code == 0, err
    assert "first" in out
    assert "other" in out
    code, alone, _ = command_line("score", both[0], "--format", "json")  # it holds both texts
    assert code == 0, alone.err
    assert json.loads(alone)
    code, out, err = command_line(*command, "--language", "pt")
    assert code == 2
    assert "language='en' instead of 'pt'; pass --overwrite" in err


@pytest.mark.slow
@pytest.mark.nemo
def test_a_damaged_model_is_one_message(files, command_line):
    """The file is a checkpoint, but no model of NeMo."""
    pytest.importorskip("nemo.collections.asr")
    code, _, err = command_line("decode", "base.nemo", "--data", "m.json", "--output", "out", "--threads", 1)
    assert code == 2
    assert "base.nemo: NeMo cannot restore it" in err
    assert "Traceback" not in err
