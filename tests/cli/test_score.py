"""``nemo-merge score`` as users call it."""

from __future__ import annotations

import csv
import io
import json
from functools import partial
from pathlib import Path

import pytest


@pytest.fixture
def call(command_line):
    return partial(command_line, "score")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    rows = [
        {"audio_filepath": "/d/u1.wav", "text": "O gato preto, dorme aqui hoje!", "lang": "pt-PT", "domain": "news"},
        {"audio_filepath": "/d/u2.wav", "text": "bom dia a todos", "lang": "pt-PT", "domain": "news"},
        {"audio_filepath": "/d/u3.wav", "text": "das <tag meeting> war gut", "lang": "de", "domain": "talks"},
    ]
    (tmp_path / "ref.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.txt").write_text("u1 o pato preto dorme aqui\nu2 bom dia a todos\nu3 das meeting war gut\n")
    (tmp_path / "b.trn").write_text("o gato preto dorme aqui hoje (u1)\nbom dia todos (u2)\ndas mieting war gut (u3)\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_markdown(call, folder):
    code, out, err = call("ref.json", "a.txt", "b.trn", "--metric", "wer", "--metric", "pier", "--baseline", "b")
    assert (code, err) == (0, "")
    assert "3 utterances; text profile whisper_basic." in out
    assert "| a | 3 | 14 | 85.7 | 7.1 | 7.1 | 0.0 | 14.3 |" in out  # gato, hoje
    assert "| b | 3 | 14 | 85.7 | 7.1 | 7.1 | 0.0 | 14.3 |" in out  # a, meeting
    assert "| pt-PT | 20.0 | 10.0 |" in out
    assert "## Point-of-interest error rate, %" in out
    assert "| domain talks | 25.0 | 2 | 50.0 | 1 |" in out
    assert "## Against b (MAPSSWE)" in out
    assert "| a | all | +0.00 (" in out


def test_json(call, folder):
    code, out, _ = call(
        "ref.json", "A=a.txt", "B=b.trn", "--base", "B", "--expert", "news=A", "--format", "json", "--metric", "wer"
    )
    found = json.loads(out)
    assert code == 0
    assert found["systems"]["A"]["wer"]["all"]["counts"]["deletions"] == 1
    assert found["systems"]["B"]["wer"]["by_domain"]["talks"]["value"] == 0.25
    assert found["systems"]["A"]["wer"]["all"]["value"] == pytest.approx(2 / 14)
    assert found["means"]["B"]["by_domain"]["full"] == pytest.approx((0.1 + 0.25) / 2)
    assert found["inputs"]["utterances"] == 3
    assert "kept" not in found  # no system but the base and the expert


def test_what_a_merge_kept(call, folder):
    (folder / "c.txt").write_text("u1 o gato preto dorme aqui\nu2 bom dia todos\nu3 das meeting war\n")
    arguments = ["ref.json", "base=a.txt", "expert=b.trn", "merge=c.txt", "--base", "base", "--expert", "pt-PT=expert"]
    code, out, _ = call(*arguments, "--metric", "wer", "--metric", "bleu", "--out-of-domain", "talks")
    assert code == 0
    assert (
        "Normalised performance (share of the experts' gains): 0 % (pt-PT 0 %)." in out
    )  # 20 % as the base; expert 10 %
    assert "| pt-PT | 20.0 | 20.0 | +0.0 | +0 % | 100 % |" in out
    assert "| de | 0.0 | 25.0 | +25.0 |  | 75 % |" in out
    assert "| merge | by domain | 20.0 | 25.0 | 22.5 |" in out
    assert r"nrefs:1\|case:mixed" in out


def test_csv(call, folder):
    code, out, _ = call("ref.json", "a.txt", "b.trn", "--format", "csv", "--replications", 0)
    table = list(csv.DictReader(io.StringIO(out)))
    (total,) = [row for row in table if (row["metric"], row["system"], row["kind"]) == ("wer", "a", "all")]
    assert (code, total["value"], total["substitutions"], total["low"]) == (0, "14.2857", "1", "")
    assert {row["name"] if "name" in row else row["group"] for row in table} == {"", "pt-PT", "de", "news", "talks"}


def test_files(call, folder):
    outputs = ["--output", "s.json", "--output", "s.md", "--output", "s.csv"]
    assert call("ref.json", "a.txt", *outputs)[0] == 0
    assert json.loads((folder / "s.json").read_text())["systems"]["a"]
    assert (folder / "s.md").read_text().startswith("3 utterances")
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "b.trn", "ref.json", "s.csv", "s.json", "s.md"]
    code, _, err = call("ref.json", "a.txt", *outputs)
    assert (code, "exists already; pass --overwrite" in err) == (2, True)
    assert call("ref.json", "a.txt", *outputs, "--overwrite")[0] == 0


def test_alignments(call, folder):
    code, out, _ = call("ref.json", "a.txt", "--alignments", 1)
    assert code == 0
    lines = out.splitlines()
    start = lines.index("a  /d/u1.wav  2 errors")
    assert [line.split() for line in lines[start + 1 : start + 4]] == [
        ["REF", "o", "gato", "preto", "dorme", "aqui", "hoje"],
        ["HYP", "o", "pato", "preto", "dorme", "aqui", "*"],
        ["S", "D"],
    ]


def test_alignments_have_colours(call, folder, monkeypatch):
    from rich.console import Console

    import nemo_merge.cli._console as module

    monkeypatch.setattr(module, "console", lambda: Console(force_terminal=True, color_system="standard", width=200))
    out = call("ref.json", "a.txt", "--alignments", 1)[1]
    assert "\x1b[1;33mgato" in out
    assert "\x1b[1;31mhoje" in out


def test_bad_rows_are_left_out_or_stop(call, folder):
    with open(folder / "a.txt", "ab") as file:
        file.write(b"u1 outra vez\nu9 nada\nu4 a\xe7\xe3o\n")
    code, out, err = call("ref.json", "a.txt")
    assert code == 0
    assert "Input: 1 wrong encoding, 1 duplicate id, 1 unknown utterance." in out
    assert "a.txt:4: u1 is there already" in err
    assert "a.txt:6: not utf-8, at byte 5 of the line" in err
    code, out, err = call("ref.json", "a.txt", "--strict")
    assert (code, out) == (2, "")
    assert "3 problems in the transcripts:" in err


def test_missing_hypotheses(call, folder):
    (folder / "a.txt").write_text("u2 bom dia a todos\n")
    rates = {}
    for missing in ("delete", "skip"):
        out = call("ref.json", "a.txt", "--missing", missing, "--format", "json")[1]
        rates[missing] = json.loads(out)["systems"]["a"]["wer"]["all"]["value"]
        assert json.loads(out)["inputs"]["problems"] == {"missing hypothesis": 2}
    assert rates == {"delete": 10 / 14, "skip": 0}


def test_hypotheses_of_a_recipe(call, folder):
    for model, text in (("base", "o"), ("merge", "o gato")):
        (folder / model).mkdir()
        for name in ("news", "talks"):
            (folder / model / f"{name}.jsonl").write_text(json.dumps({"id": "u", "text": "o gato", "pred_text": text}))
    out = call("base", "base", "merge", "--out-of-domain", "talks", "--format", "json", "--base", "base")[1]
    found = json.loads(out)
    assert found["means"]["base"]["by_set"] == {"in_domain": 0.5, "out_of_domain": 0.5, "full": 0.5}
    assert found["kept"]["merge"]["retention"]["news"]["difference"] == -0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.json", "a.txt"], "missing.json: cannot be read"),
        (["ref.json"], "has no pred_text"),
        (["ref.json", "a.txt", "a.txt"], "two systems are called 'a.txt'"),
        (["ref.json", "x=a.txt", "x=b.trn"], "two systems are called 'x'; name them"),
        (["ref.json", "a.txt", "--metric", "mer"], "there is no metric 'mer'"),
        (["ref.json", "a.txt", "--profile", "whisper_english"], "is for English alone"),
        (["ref.json", "a.txt", "--profile", "pt=pt_ep", "--profile", "de=pt_ep"], "and the texts are in 'de'"),
        (["ref.json", "a.txt", "--profile", "fr=wrods"], "there is no text profile 'wrods'; did you mean 'words'"),
        (["ref.json", "a.txt", "--casing", "de=upper"], "casing='upper' is none of lower, keep"),
        (["ref.json", "a.txt", "--casing", "keep"], "has fixed rules for casing and punctuation"),
        (
            ["ref.json", "a.txt", "--profile", "none", "--profile", "words"],
            "--profile is given twice for all languages: none and words",
        ),
        (["ref.json", "a.txt", "--baseline", "b"], "there is no baseline 'b'"),
        (["ref.json", "a.txt", "--expert", "news"], "--expert news: expected KEY=NAME"),
        (["ref.json", "a.txt", "--expert", "news=a"], "--expert needs --base"),
        (["ref.json", "a.txt", "--by-speaker"], "have no speaker"),
        (["ref.json", "a.txt", "--format", "json", "--alignments", 1], "would end up in the report"),
        (["ref.json", "a.txt", "--output", "x.html"], "the suffix is none of"),
        (["ref.json", "a.txt", "--output", "nowhere/x.json"], "there is no folder nowhere"),
        (["ref.json", "a.txt", "--input-format", "stm"], "there is no transcript format 'stm'"),
    ],
)
def test_mistakes_are_told(call, folder, arguments, message):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
