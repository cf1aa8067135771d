"""``nemo-merge report`` as users call it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.fixtures.experiments import write_experiment

pytest.importorskip("rapidfuzz")

QUICK = ("--replications", 20, "--no-spectra")


@pytest.fixture
def call(command_line):
    return partial(command_line, "report")


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    return write_experiment(tmp_path)


def test_the_page_goes_into_the_folder(call, experiment):
    code, out, err = call(experiment, *QUICK, "--group", "Languages=german", "--worst", 3, "--notice", "Only a test.")
    page = experiment / "report.html"
    assert (code, err) == (0, "")
    assert out.startswith(f"{page}: 6 systems, 4 test sets, 3 utterances (3 with audio), ")
    text = page.read_text()
    assert "Only a test." in text
    assert f"nemo-merge report {experiment}" in text
    assert call(experiment, *QUICK)[0] == 2  # it is there already
    assert page.read_text() == text
    assert call(experiment, *QUICK, "--overwrite", "--worst", 0)[0] == 0
    assert "<article" not in page.read_text()
    assert not list(experiment.glob(".*"))


def test_what_earlier_runs_left_is_not_shown(call, experiment):
    old = experiment / "decode" / "old"
    old.mkdir()
    (old / "news.jsonl").write_text('{"id": "x", "text": "a", "pred_text": "a"}\n')
    code, out, _ = call(experiment, *QUICK)
    assert (code, "6 systems" in out) == (0, True)


def test_missing_hypotheses_are_deletions(call, experiment):
    path = experiment / "decode" / "ties" / "news.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    code, _, err = call(experiment, *QUICK)
    assert (code, err) == (0, "nemo-merge: warning: missing hypothesis: 1\n")
    assert "missing hypothesis, 1 time." in (experiment / "report.html").read_text()


def _append(name: str, text: str):
    def damage(folder: Path) -> None:
        with open(folder / name, "a", encoding="utf-8") as file:
            file.write(text)

    return damage


def _write(name: str, text: str):
    def damage(folder: Path) -> None:
        (folder / name).write_text(text)

    return damage


def _remove(name: str):
    def damage(folder: Path) -> None:
        path = folder / name
        path.rename(folder.parent / f"was_{path.name}")

    return damage


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        (_append("decode/ties/news.jsonl", '{"id": '), (), "decode/ties/news.jsonl:7: not JSON"),
        (_append("decode/ties/news.jsonl", "[1]\n"), (), "decode/ties/news.jsonl:7: not a JSON object"),
        (_write("decode/ties/news.jsonl", ""), (), "decode/ties/news.jsonl: no utterances found"),
        (_remove("decode/ties/german.jsonl"), (), "has no transcripts of the test set 'german'"),
        (_remove("decode/ties"), (), "scores.json: speaks of ties, which decode/ lacks"),
        (_write("scores.json", '{\n "sets": {,}\n}'), (), "scores.json:2: not JSON"),
        (_write("scores.json", "[]"), (), "scores.json:1: not a JSON object"),
        (_write("scores.json", '{"sets": 3, "against": {}}'), (), "scores.json: "),
        (_write("scores.json", '{"significance": 3}'), (), "scores.json: not what scoring writes"),
        (_remove("decode"), (), "nothing was decoded, there is no decode/"),
        (_write("merged/ties.nemo.merge.yaml", "method: ties\nbase: [\n"), (), "ties.nemo.merge.yaml:3: not YAML"),
        (
            _write("merged/ties.nemo.merge.yaml", "method: ties\n"),
            (),
            "ties.nemo.merge.yaml: not the record of a merge",
        ),
        (_append("jobs/decode-0.json", "}"), (), "decode-0.json:1: not JSON"),
        (
            _append("../data/cuts_news.jsonl", "{}\n[]\n"),
            (),
            "cuts_news.jsonl:8: neither a line of a NeMo manifest nor",
        ),
        (None, ("--audio", "nowhere.json"), "nowhere.json: cannot be read"),
        (None, ("--base", "bass"), "there is no system 'bass'; did you mean 'base'?"),
        (None, ("--baseline", "tie"), "there is no system 'tie'; did you mean 'ties'?"),
        (None, ("--expert", "new=news"), "there is no test set 'new'; did you mean 'news'?"),
        (None, ("--worst-of", "tsv"), "there is no system 'tsv'; did you mean 'tsvm'?"),
        (None, ("--group", "Languages=germna"), "there is no test set 'germna'; did you mean 'german'?"),
        (None, ("--group", "Mine=news"), "the test set 'news' is in the group 'Sets with an expert' already"),
        (None, ("--group", "Other sets=german"), "the page has a group of that name"),
        (None, ("--profile", "nome"), "nome"),
        (_remove("models/talks.nemo"), ("--spectra",), "no spectra: models/ has no talks"),
        (_write("models/talks.nemo", "no tar"), ("--spectra",), "talks.nemo"),
    ],
)
def test_what_cannot_be_shown_is_said(call, experiment, damage, arguments, message):
    if damage:
        damage(experiment)
    code, out, err = call(experiment, *QUICK, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("nemo-merge: error: ")
    assert not (experiment / "report.html").exists()


def test_no_experiment(call, tmp_path):
    assert "no such folder" in call(tmp_path / "nowhere", "--output", tmp_path / "page.html")[2]
    (tmp_path / "empty").mkdir()
    code, _, err = call(tmp_path / "empty")
    assert (code, "nothing is scored here" in err) == (2, True)
    (tmp_path / "file").write_text("")
    assert "is no folder" in call(tmp_path / "file", "--output", tmp_path / "page.html")[2]
    assert "does not exist; create it first" in call(tmp_path / "empty", "--output", tmp_path / "no" / "page.html")[2]


def test_models_that_do_not_fit_are_no_reason_to_have_no_page(call, experiment):
    (experiment / "models" / "talks.nemo").write_text("no tar")
    assert call(experiment, "--replications", 20)[0] == 0
    assert "Not measured" in (experiment / "report.html").read_text()
