"""Audio that users point at: every form of it, the draw, and every way in which it can be wrong."""

from __future__ import annotations

import gzip
import hashlib
import json

import pytest

soundfile = pytest.importorskip("soundfile")
from nemo_merge.errors import AudioError  # noqa: E402
from nemo_merge.training.audio import LONGEST_PIECE, read_audio  # noqa: E402
from tests.fixtures.audio import write_audio, write_manifest  # noqa: E402


@pytest.fixture
def files(tmp_path):
    return write_audio(tmp_path / "audio")


def spans(sample):
    return [(round(piece.start, 6), round(piece.duration, 6)) for piece in sample.pieces]


def cut(file, identity="a-0", start=0.0):
    duration = soundfile.info(file).duration
    recording = {
        "id": "a",
        "sources": [{"type": "file", "channels": [0], "source": str(file)}],
        "sampling_rate": 16000,
        "num_samples": int(duration * 16000),
        "duration": duration,
        "channel_ids": [0],
    }
    entry = {"id": identity, "start": start, "duration": duration - start, "channel": 0, "recording": recording}
    return {**entry, "supervisions": [], "type": "MonoCut"}


def test_every_form_gives_the_same_pieces(files, tmp_path):
    manifest = write_manifest(tmp_path / "m.json", files)
    cuts = tmp_path / "cuts.jsonl.gz"
    cuts.write_bytes(gzip.compress("".join(json.dumps(cut(file)) + "\n" for file in files).encode()))
    (tmp_path / "list.json").write_text(json.dumps([json.loads(line) for line in manifest.read_text().splitlines()]))
    sources = [manifest, cuts, tmp_path / "list.json", tmp_path / "audio", [str(file) for file in reversed(files)]]
    samples = [read_audio(source, seconds=12) for source in sources]
    assert all(spans(sample) == spans(samples[0]) for sample in samples)
    kinds = [sample.kind for sample in samples]
    assert kinds == ["nemo manifest", "lhotse cuts", "nemo manifest", "folder", "files"]
    assert 12 <= samples[0].seconds < 12 + 2.2
    assert samples[0].available == len(files)
    assert samples[0].sha256 == hashlib.sha256(manifest.read_bytes()).hexdigest()


def test_the_draw_depends_on_the_seed_only_and_takes_all_when_asked_for_more(files, tmp_path):
    draws = [spans(read_audio(tmp_path / "audio", seconds=10, seed=seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    everything = read_audio(tmp_path / "audio", seconds=1000)
    assert [piece.path for piece in everything.pieces] == [str(file) for file in files]


def test_long_recordings_are_cut_into_equal_pieces(tmp_path):
    (file,) = write_audio(tmp_path / "long", count=1, seconds=70, rate=2000)
    sample = read_audio(file, seconds=1000)
    assert spans(sample) == [(0, 23.333333), (23.333333, 23.333333), (46.666667, 23.333333)]
    assert max(piece.duration for piece in sample.pieces) <= LONGEST_PIECE
    assert len(read_audio(file, seconds=40).pieces) == 2


def test_a_manifest_may_name_parts_and_relative_paths(files, tmp_path):
    rows = [{"audio_filepath": f"audio/{file.name}", "offset": 0.25, "duration": 0.5} for file in files] * 2
    rows += [{"audio_filepath": f"audio/{files[0].name}", "offset": 0.25}]
    (tmp_path / "m.json").write_text("\n".join(map(json.dumps, rows)))
    sample = read_audio(tmp_path / "m.json")
    assert spans(sample) == [(0.25, 0.5)] * 24 + [(0.25, 0.75)]
    assert all(piece.path.startswith(str(tmp_path)) for piece in sample.pieces)


def test_the_digest_of_a_folder_tells_names_and_sizes(files, tmp_path):
    before = read_audio(tmp_path / "audio").sha256
    assert read_audio(tmp_path / "audio", seed=3).sha256 == before
    files[0].rename(files[0].with_name("other.wav"))
    assert read_audio(tmp_path / "audio").sha256 != before


def test_the_record_says_what_was_heard(files, tmp_path):
    record = read_audio(tmp_path / "audio", seconds=11, seed=2).record()
    assert record["path"] == str(tmp_path / "audio")
    assert (record["seconds"], record["seed"], record["recordings"]) == (11, 2, 12)
    assert record["length"] >= 11


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.json", None, "missing.json: no such file or folder; audio is a NeMo manifest or Lhotse cuts"),
        ("notes.txt", "hello", "notes.txt: of an unknown format; pass a NeMo manifest"),
        ("m.json", "", "m.json: empty; it lists no audio"),
        ("m.json", "not json", "m.json: not JSON"),
        ("m.json", "3\n", "m.json, line 1: not an object"),
        ("m.json", '{"text": "olá"}', "m.json, line 1: neither an entry of a NeMo manifest .* nor a Lhotse cut with audio"),
        ("m.json", '{"audio_filepath": "a.wav", "duration": "3 s"}', "line 1: duration='3 s' is not a number of seconds"),
        ("m.json", '{"audio_filepath": "a.wav", "duration": NaN}', "line 1: duration=nan is not a number of seconds"),
        ("m.json", '{"audio_filepath": "a.wav", "duration": 20}', "names .*a.wav, which does not exist; tarred audio"),
        ("m.json", '{"audio_filepath": "a.wav", "duration": 3}', "m.json: holds 3.0 s of audio .* give 10 s at least"),
        ("m.json", '{"audio_filepath": "a.wav"}', "a.wav: cannot be read as audio"),
        ("m.json.gz", "not gzip", "m.json.gz: cannot be read"),
        ("a.wav", "not audio", "a.wav: cannot be read as audio"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(AudioError, match=message):
        read_audio(tmp_path / name)


@pytest.mark.parametrize(
    ("source", "seconds", "message"),
    [
        ([], 600, "neither a path nor a list of paths"),
        (["no.wav"], 600, "no.wav: no such audio file"),
        (3, 600, "neither a path nor a list of paths"),
        ("x.json", 3, "seconds=3 is not a number from 10 on"),
        ("x.json", float("nan"), "seconds=nan is not a number"),
        ("x.json", "long", "seconds='long' is not a number"),
    ],
)
def test_arguments_that_make_no_sense(source, seconds, message):
    with pytest.raises(AudioError, match=message):
        read_audio(source, seconds=seconds)


def test_folders_without_audio_or_with_too_little(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(AudioError, match="empty: no audio in this folder"):
        read_audio(tmp_path / "empty")
    write_audio(tmp_path / "short", count=100, seconds=0.01)
    with pytest.raises(AudioError, match=r"holds 0\.0 s of audio in recordings of 0\.2 s or more"):
        read_audio(tmp_path / "short")
