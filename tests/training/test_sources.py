"""What is found at a path to train on."""

from __future__ import annotations

import gzip
import json

import pytest

from nemo_merge.errors import ConfigError
from nemo_merge.training.sources import check_mix, mix, read_source

CUT = {"id": "a", "start": 0, "duration": 1.0, "channel": 0, "recording": {}, "type": "MonoCut"}
ROW = {"audio_filepath": "a.wav", "duration": 1.0, "text": "a"}


def write(path, *rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_the_content_decides_not_the_name(tmp_path):
    cuts, manifest = write(tmp_path / "data.jsonl.gz", CUT, CUT), write(tmp_path / "data.json", ROW)
    shards = write(tmp_path / "shar" / "cuts.000000.jsonl.gz", CUT).parent
    found = [read_source(path, "train[0]") for path in (cuts, manifest, shards)]
    assert [item.kind for item in found] == ["lhotse", "nemo", "lhotse_shar"]
    assert [item.endless for item in found] == [False, False, True]
    assert [item.utterances() for item in found] == [2, 1, 1]
    assert [item.input_cfg() for item in found] == [
        {"type": "lhotse", "cuts_path": str(cuts)},
        {"type": "nemo", "manifest_filepath": str(manifest)},
        {"type": "lhotse_shar", "shar_path": str(shards)},
    ]


def test_sources_are_mixed_by_weight_or_by_size(tmp_path):
    paths = [write(tmp_path / "a.json", ROW), write(tmp_path / "b.json", ROW, ROW, ROW)]
    assert mix([read_source(paths[0], "")]) == [{"type": "nemo", "manifest_filepath": str(paths[0])}]
    assert [item["weight"] for item in mix([read_source(path, "") for path in paths])] == [1.0, 3.0]
    weighted = [read_source({"path": path, "weight": 2, "tags": {"lang": "pt"}}, "") for path in paths]
    assert [(item["weight"], item["tags"]) for item in mix(weighted)] == [(2, {"lang": "pt"})] * 2


def test_entries_in_the_words_of_nemo_pass_through():
    entry = {"type": "nemo_tarred", "manifest_filepath": "m.json", "tarred_audio_filepaths": "a.tar", "weight": 2}
    source = read_source(entry, "train[0]")
    assert source.endless
    assert source.input_cfg(source.weight) == entry


def test_the_record_has_digests(tmp_path):
    source = read_source({"path": write(tmp_path / "a.json", ROW), "tags": {"lang": "pt"}}, "")
    record = source.record()
    assert record["tags"] == {"lang": "pt"}
    assert len(record["sha256"]["a.json"]) == 64


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("none.json", "none.json does not exist"),
        ("empty.json", "is empty"),
        ("text.json", "neither Lhotse cuts nor a NeMo manifest"),
        ("other.json", "neither Lhotse cuts nor a NeMo manifest"),
        ("short.json", "without duration"),
        ("folder", "folder without Lhotse shards"),
        ({"paths": "a"}, "no key 'paths'; did you mean 'path'"),
        ({"path": "row.json", "weight": 0}, "weight=0 is not a positive number"),
        ({"path": "row.json", "tags": ["pt"]}, "is not a mapping"),
        ({"weight": 1}, "says no path"),
        (3, "neither a path nor a mapping"),
    ],
)
def test_bad_sources_are_refused(tmp_path, monkeypatch, value, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.json").write_text("\n")
    (tmp_path / "text.json").write_text("o gato\n")
    write(tmp_path / "other.json", {"text": "o gato"})
    write(tmp_path / "short.json", {"audio_filepath": "a.wav"})
    write(tmp_path / "row.json", ROW)
    with pytest.raises(ConfigError, match=message) as error:
        read_source(value, "train[2]")
    assert "train[2]: " in str(error.value)


def test_what_nemo_cannot_mix_is_refused(tmp_path):
    manifest = write(tmp_path / "a.json", ROW)
    shards = write(tmp_path / "shar" / "cuts.000000.jsonl", CUT).parent
    with pytest.raises(ConfigError, match="every source a weight, or none"):
        check_mix([read_source(manifest, ""), read_source({"path": manifest, "weight": 2}, "")], "train")
    with pytest.raises(ConfigError, match="cannot be mixed"):
        check_mix([read_source(manifest, ""), read_source(shards, "")], "train")
