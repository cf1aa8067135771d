from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_merge.errors import ConfigError, TranscriptError
from nemo_merge.scoring.transcripts import Problems, ReadingOptions, read_rows, system_names


def write(path: Path, rows: dict[str, str] | list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(rows, dict):
        path.write_text("".join(f"{name} {text}\n" for name, text in rows.items()))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(reference: Path, *hypotheses: Path, **options) -> tuple[dict[str, dict[str, str]], Problems]:
    problems = Problems()
    systems = dict(zip("ab", hypotheses, strict=False))
    rows = read_rows(reference, systems, problems, ReadingOptions(**options))
    return {row.id: dict(row.heard) for row in rows}, problems


def test_rows_come_in_the_order_of_the_references(tmp_path):
    reference = write(tmp_path / "ref", {"u2": "x", "u1": "y"})
    hypothesis = write(tmp_path / "hyp", {"u1": "Y", "u2": "X"})
    rows, problems = rows_of(reference, hypothesis)
    assert list(rows.items()) == [("u2", {"a": "X"}), ("u1", {"a": "Y"})]
    assert not problems.found


def test_what_does_not_fit_is_named(tmp_path):
    reference = write(tmp_path / "ref", {"u1": "x", "u2": "y", "u3": ""})
    hypotheses = [
        write(tmp_path / "a", {"u1": "x", "u9": "z"}),
        write(tmp_path / "b", {"u1": "x", "u2": "y", "u3": "z"}),
    ]
    rows, problems = rows_of(reference, *hypotheses)
    assert rows == {"u1": {"a": "x", "b": "x"}, "u2": {"a": "", "b": "y"}}
    assert problems.counts() == {"unknown utterance": 1, "empty reference": 1, "missing hypothesis": 1}
    assert [str(problem) for problem in problems.found] == [
        f"{hypotheses[0]}:2: u9 is not in {reference}",
        f"{reference}:2: u2 has no hypothesis in {hypotheses[0]}",
        f"{reference}:3: the reference of u3 is empty",
    ]
    assert list(rows_of(reference, *hypotheses, missing="skip")[0]) == ["u1"]
    assert rows_of(reference, *hypotheses, keep_empty=True)[0]["u3"] == {"a": "", "b": "z"}


def test_pred_text_is_what_was_heard(tmp_path):
    both = write(
        tmp_path / "set.jsonl",
        [{"id": "u1", "text": "x", "pred_text": "X"}, {"id": "u2", "text": "y", "pred_text": None}],
    )
    rows, problems = rows_of(both, both)
    assert rows == {"u1": {"a": "X"}, "u2": {"a": ""}}
    assert problems.counts() == {"missing hypothesis": 1}
    alone = read_rows(both, {}, Problems(), ReadingOptions())
    assert [dict(row.heard) for row in alone] == [{"set": "X"}, {"set": ""}]
    with pytest.raises(TranscriptError, match="has no pred_text"):
        read_rows(write(tmp_path / "ref", {"u1": "x"}), {}, Problems(), ReadingOptions())


def test_hypotheses_alone_are_no_references(tmp_path):
    reference = write(tmp_path / "r.jsonl", [{"id": "u1", "text": "x"}, {"id": "u2", "pred_text": "y"}])
    rows, problems = rows_of(reference, reference)
    assert list(rows) == ["u1"]
    assert problems.counts()["no reference"] == 1


@pytest.mark.parametrize(
    ("references", "hypotheses"),
    [
        (["/data/a/1.wav", "/data/b/2.wav"], ["1", "2"]),
        (["/data/a/1.wav", "/data/b/1.wav"], ["/other/place/a/1.wav", "/other/place/b/1.wav"]),
        (["/data/a/1.wav", "/data/b/1.wav"], ["a/1", "b/1"]),
        (["x.wav@1.5", "x.wav@3.0"], ["/y/x.flac@1.5", "/y/x.flac@3.0"]),
    ],
)
def test_the_same_audio_under_another_path(tmp_path, references, hypotheses):
    def row(path: str, text: str) -> dict:
        name, _, offset = path.partition("@")
        return {"audio_filepath": name, "text": text, **({"offset": float(offset)} if offset else {})}

    reference = write(tmp_path / "ref.json", [row(path, f"r{index}") for index, path in enumerate(references)])
    if "@" in hypotheses[0]:
        hypothesis = write(tmp_path / "hyp.json", [row(path, f"h{index}") for index, path in enumerate(hypotheses)])
    else:
        hypothesis = write(tmp_path / "hyp", {path: f"h{index}" for index, path in enumerate(hypotheses)})
    rows, problems = rows_of(reference, hypothesis)
    assert [heard["a"] for heard in rows.values()] == ["h0", "h1"]
    assert not problems.found


def test_nothing_in_common(tmp_path):
    with pytest.raises(TranscriptError, match=r"has no utterance of .*ref; the first ids are 'v' there and 'u' here"):
        rows_of(write(tmp_path / "ref", {"u": "x"}), write(tmp_path / "hyp", {"v": "x"}))


def test_folders_hold_one_file_per_set(tmp_path):
    for model in ("base", "ties"):
        for name in ("news", "talks"):
            write(tmp_path / model / f"{name}.jsonl", [{"id": "u1", "text": name, "pred_text": model}])
    (tmp_path / "base" / ".hidden.jsonl").write_text("")
    problems = Problems()
    folders = {"base": tmp_path / "base", "ties": tmp_path / "ties"}
    rows = read_rows(tmp_path / "base", folders, problems, ReadingOptions(language="pt"))
    assert [(row.set, row.text, row.heard["ties"], row.language) for row in rows] == [
        ("news", "news", "ties", "pt"),
        ("talks", "talks", "ties", "pt"),
    ]
    (tmp_path / "ties" / "talks.jsonl").unlink()
    with pytest.raises(TranscriptError, match=r"ties: has no transcripts of the test set 'talks'"):
        read_rows(tmp_path / "base", folders, problems, ReadingOptions())
    with pytest.raises(ConfigError, match="give two files, or two folders"):
        read_rows(tmp_path / "base", {"x": tmp_path / "base" / "news.jsonl"}, problems, ReadingOptions())
    (tmp_path / "empty").mkdir()
    with pytest.raises(TranscriptError, match="holds no transcripts"):
        read_rows(tmp_path / "empty", folders, problems, ReadingOptions())


def test_labels_overrule_and_the_language_fills_gaps(tmp_path):
    reference = write(
        tmp_path / "r.jsonl",
        [{"id": "u1", "text": "x", "lang": "pt"}, {"id": "u2", "text": "y"}, {"id": "u3", "text": "z"}],
    )
    labels = {
        "language": write(tmp_path / "utt2lang", {"u1": "pt-PT"}),
        "speaker": write(tmp_path / "utt2spk", {"u3": "Ana"}),
    }
    rows = read_rows(reference, {"a": reference}, Problems(), ReadingOptions(labels=labels, language="de"))
    assert [(row.language, row.speaker) for row in rows] == [("pt-PT", None), ("de", None), ("de", "Ana")]
    labels = {"domain": write(tmp_path / "utt2domain", {"v": "news"})}
    with pytest.raises(TranscriptError, match="utt2domain: names no utterance of the references"):
        read_rows(reference, {"a": reference}, Problems(), ReadingOptions(labels=labels))


def test_names_of_systems():
    assert system_names([Path("a/ties.jsonl"), Path("a/tsvm.json.gz")]) == ["ties", "tsvm"]
    assert system_names([Path("ties/test.jsonl"), Path("tsvm/test.jsonl")]) == ["ties", "tsvm"]
    assert system_names([Path("x/a/t"), Path("y/a/t")]) == ["x/a/t", "y/a/t"]
    assert system_names([]) == []
