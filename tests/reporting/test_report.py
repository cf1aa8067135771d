"""The page of an experiment: what it says, that it needs nothing else, and that what is data stays data."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import soundfile

from nemo_merge.reporting.experiment import ReportOptions, write_page
from nemo_merge.reporting.experiment.audio import Clips, Source, find_audio
from nemo_merge.reporting.experiment.charts import non_dominated, pareto
from nemo_merge.scoring import bootstrap_interval, word_error_rate
from nemo_merge.scoring.error_rates import word_errors
from tests.fixtures.experiments import SAID, write_experiment, write_lines

pytest.importorskip("rapidfuzz")

VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})
ATTACK = '"><script>alert(1)</script><img src=x onerror=alert(2)> gato'
QUICK = ReportOptions(replications=50, spectra=False)


class Parsed(HTMLParser):
    """Elements with attributes and text; complains about tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag: str) -> str:
        return " ".join(data for name, data in self.texts if name == tag)

    def rows(self, table: int) -> dict[str, list[str]]:
        return {row[0]: [" ".join(cell.split()) for cell in row[1:]] for row in self.tables[table]}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("report"), heard={"news-1": ATTACK, "talks-2": "o rato"})


@pytest.fixture(scope="module")
def made(experiment) -> tuple[Parsed, str]:
    output = experiment.parent / "page.html"
    options = replace(
        QUICK, spectra=True, worst_of="tsvm", title="A <b>bold</b> title", command="nemo-merge report exp"
    )
    write_page(experiment, output, options)
    text = output.read_text(encoding="utf-8")
    return Parsed(text), text


def test_means_and_differences_are_those_of_scoring(made, experiment):
    rows = made[0].rows(0)
    heard = {
        system: [
            [json.loads(line)["pred_text"] for line in (experiment / "decode" / system / f"{name}.jsonl").open()]
            for name in ("news", "talks")
        ]
        for system in ("soup", "ties")
    }
    errors = {system: [word_errors(SAID, texts) for texts in found] for system, found in heard.items()}
    assert rows["ties"][1] == f"{100 * bootstrap_interval(errors['ties'], replications=1).value:.1f}"
    difference = bootstrap_interval(errors["ties"], errors["soup"], replications=1).value
    assert rows["ties"][3] == f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")
    assert rows["ties"][5].endswith(("better", "unclear"))
    assert rows["soup"][0] == "merge, baseline"  # the one that scores.json does not compare
    assert [rows[name][0] for name in ("base", "news", "talks", "tsvm")] == ["base", "expert", "expert", "merge"]


def test_rates_of_every_set(made, experiment):
    (table,) = [table for table in made[0].tables if table[0][1:] == ["Sets with an expert", "Other sets"]]
    assert table[1] == ["system", "news", "talks", "german", "kitchen"]
    (row,) = [row for row in table if row[0] == "ties"]
    texts = [json.loads(line)["pred_text"] for line in (experiment / "decode" / "ties" / "german.jsonl").open()]
    assert row[3].split()[-1] == f"{100 * word_error_rate(SAID, texts).rate:.1f}"


def test_worst_utterances_with_audio(made, experiment):
    parsed, text = made
    assert "Worst utterances of tsvm" in parsed.text("h2")
    players = parsed.all("audio")
    articles = parsed.all("article")
    assert len(players) == len(articles) == 4  # of the two sets with an expert, those with errors
    content = base64.b64decode(players[0]["src"].removeprefix("data:audio/flac;base64,"))
    audio, rate = soundfile.read(io.BytesIO(content))
    first = re.search(r"</span> ((?:news|talks)-\d)</h3>", text).group(1)
    expected, _ = soundfile.read(experiment.parent / "data" / f"{first}.flac")
    assert rate == 16000
    assert (audio == expected).all()
    assert {"pt-PT", "en"} == {attributes["lang"] for _, attributes in parsed.elements if "lang" in attributes}
    assert {mark for name, mark in parsed.texts if name == "b"} >= {"S", "D", "I"}


def test_what_is_data_is_escaped(made):
    parsed, text = made
    assert "<script>alert" not in text
    assert len(parsed.all("script")) == 1
    assert not parsed.all("img")
    assert ATTACK in " ".join(data for _, data in parsed.texts)
    assert "A <b>bold</b> title" in parsed.text("h1")


def test_names_are_escaped(tmp_path):
    name = "<img src=x onerror=alert(1)>'\""
    rows = [{"id": name, "text": "um", "pred_text": "dois", "lang": 'pt" onload=alert(1)'}]
    for system in (name, "other"):
        (tmp_path / "hyps" / system).mkdir(parents=True)
        for test_set in ("one", "two <b>"):
            write_lines(tmp_path / "hyps" / system / f"{test_set}.json", rows)
    write_page(tmp_path / "hyps", tmp_path / "page.html", replace(QUICK, experts={"two <b>": name}, base="other"))
    parsed = Parsed((tmp_path / "page.html").read_text())
    assert not {"img", "b "} & {tag for tag, _ in parsed.elements}
    assert not [attributes for _, attributes in parsed.elements if "onload" in attributes or "onerror" in attributes]
    assert name in parsed.text("th")
    assert name in parsed.text("text")  # of the plot


def test_the_page_needs_nothing_else(made):
    parsed, text = made
    (policy,) = [meta["content"] for meta in parsed.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    for tag, attributes in parsed.elements:
        assert not {name for name in attributes if name.startswith("on") or name == "style"}, tag
        for name in ("src", "href", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:audio/flac;base64,"))
    assert "url(" not in text
    assert "@import" not in text


def test_structure(made):
    parsed, _ = made
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len({*ids})
    assert {link["href"].removeprefix("#") for link in parsed.all("a")} <= {*ids}
    assert {
        name for _, attributes in parsed.elements for name in (attributes.get("aria-labelledby") or "").split()
    } <= {*ids}
    assert parsed.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(cell.get("scope") for cell in parsed.all("th"))


def test_spectra_and_provenance(made):
    parsed, text = made
    assert len(re.findall(r'<polyline class="curve curve\d"', text)) == 2
    assert b"news".hex().zfill(64) in parsed.text("code")
    (merges,) = [table for table in parsed.tables if table[0][1:2] == ["method"]]
    assert "then\xa0name lines, alpha None, beta 0.5" in merges[1][2]
    assert "nemo-merge merge method=tsvm" in parsed.text("pre")
    assert "nemo-merge report exp" in parsed.text("pre")
    assert "python 3.11" in parsed.text("p")


def test_groups_and_pareto_front(experiment, tmp_path):
    options = replace(QUICK, groups={"Languages": ["german"]})
    page = write_page(experiment, tmp_path / "page.html", options)
    assert [section.name for section in page.sections] == ["Sets with an expert", "Languages", "Other sets"]
    first, languages, _ = page.sections
    points = {name: (first.means[name].value, languages.means[name].value) for name in page.systems}
    assert {*page.plots["Languages"].best} == non_dominated(points)
    assert "base" in page.plots["Languages"].best  # the base is best on what nothing was trained for
    assert page.plots["Languages"].best != page.systems


def test_labels_of_a_crowded_plot_do_not_overlap():
    points = {f"method_{index}": (0.1 + index / 1000, 0.5 - index / 1000) for index in range(25)}
    plot = pareto(points, lambda name: "merge")
    boxes = [(label.left, label.top, label.left + 7 * len(label.text), label.top + 12) for label in plot.labels]
    assert len(boxes) >= 15
    assert not any(
        a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
        for index, a in enumerate(boxes)
        for b in boxes[:index]
    )
    assert pareto({"one": (0.0, 0.0)}, lambda name: "base").best == ["one"]


def test_hypotheses_without_anything_else(tmp_path):
    rows = [{"audio_filepath": f"wav/u{i}.wav", "text": "Bom dia, a todos!", "lang": "pt-PT"} for i in range(3)]
    (tmp_path / "hyps").mkdir()
    write_lines(tmp_path / "hyps" / "test.json", rows)
    for name, heard in {"a": "bom dia todos", "b": "bom dia a todos"}.items():
        (tmp_path / "hyps" / f"v1.{name}.trn").write_text("".join(f"{heard} (u{i})\n" for i in range(3)))
    options = replace(QUICK, reference=tmp_path / "hyps" / "test.json", spectra=None)
    page = write_page(tmp_path / "hyps", tmp_path / "page.html", options)
    assert (page.systems, page.best, page.roles.baseline) == (["v1.b", "v1.a"], "v1.b", "v1.a")
    assert page.sections[0].means["v1.a"].value == 0.25  # as nemo-merge score would have it: without punctuation
    parsed = Parsed((tmp_path / "page.html").read_text())
    assert "There is no plot" in parsed.text("p")
    assert "It makes no error there" in parsed.text("p")


def test_kaldi_texts_by_system_and_set(tmp_path):
    for system, heard in {"said": "um dois", "a": "um", "b": "um dois"}.items():
        folder = tmp_path / "said" if system == "said" else tmp_path / "hyps" / system
        folder.mkdir(parents=True)
        for name in ("one", "two"):
            (folder / name).write_text(f"u1 {heard}\n")
    page = write_page(tmp_path / "hyps", tmp_path / "page.html", replace(QUICK, reference=tmp_path / "said"))
    assert (page.systems, page.sections[0].sets) == (["b", "a"], ["one", "two"])
    assert page.sections[0].means["a"].value == 0.5
    assert [clip.clip.problem for clip in page.examples] == []  # the best one makes no errors


def test_audio_is_limited_and_may_be_missing(experiment, tmp_path):
    whole = write_page(experiment, tmp_path / "whole.html", QUICK)
    sizes = [len(base64.b64decode(item.clip.address.partition(",")[2])) for item in whole.examples]
    page = write_page(experiment, tmp_path / "some.html", replace(QUICK, audio_limit=sum(sizes[:2])))
    assert [bool(item.clip.address) for item in page.examples][:2] == [True, True]
    assert "--audio-limit" in page.examples[2].clip.problem
    with_broken = tmp_path / "broken.flac"
    with_broken.write_bytes(b"not audio")
    assert "cannot be read" in Clips(10**6).get(Source(with_broken)).problem
    assert Clips(10**6).get(None).problem == "no audio at hand"


def test_audio_by_folder_and_manifest(tmp_path):
    soundfile.write(tmp_path / "u1.wav", [[0.0, 0.5]] * 1600, 16000)
    rows = [{"audio_filepath": "u1.wav", "offset": 0.05, "duration": 0.025, "text": "a", "lang": "de"}]
    manifest = write_lines(tmp_path / "manifest.json", rows)
    found = find_audio([manifest, tmp_path], {"u1", "u1.wav@0.05", "../../etc/passwd"})
    assert found["u1"] == Source(tmp_path / "u1.wav")
    assert found["u1.wav@0.05"].language == "de"
    assert set(found) == {"u1", "u1.wav@0.05"}
    clip = Clips(10**6).get(found["u1.wav@0.05"])
    audio, _ = soundfile.read(io.BytesIO(base64.b64decode(clip.address.partition(",")[2])))
    assert len(audio) == 400
    assert audio.max() == pytest.approx(0.25, abs=1e-3)  # the mean of both channels


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_it(experiment, tmp_path):
    """Players have a length, the script ran, nothing was blocked, and nothing but tables scrolls sideways."""
    write_page(experiment, tmp_path / "page.html", QUICK)
    probe = """<!DOCTYPE html><title>waiting</title><iframe width=380 height=800 src=page.html></iframe><script>
    onload = () => setTimeout(() => {
      const page = document.querySelector("iframe").contentDocument;
      const differences = page.querySelectorAll("thead button")[4];
      differences.click();
      const rows = () => [...page.querySelectorAll("table")[0].tBodies[0].rows];
      const numbers = rows().map((row) => row.cells[4].textContent.trim());
      page.querySelector("th button").click();
      const names = rows().map((row) => row.cells[0].textContent);
      const players = [...page.querySelectorAll("audio")].map((player) => player.duration > 0.2);
      const found = [names, numbers, players, page.documentElement.scrollWidth, page.querySelector(".scroll").scrollWidth];
      document.body.append(Object.assign(document.createElement("output"), {textContent: JSON.stringify(found)}));
    }, 1500); </script>"""
    (tmp_path / "probe.html").write_text(probe)
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    command += ["--dump-dom", (tmp_path / "probe.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"<output>(.*?)</output>", done.stdout)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    names, numbers, players, width, table_width = json.loads(found.group(1))
    assert names == sorted(names)
    assert numbers.pop() == ""  # the baseline, which has no difference to itself
    values = [float(number.replace("\N{MINUS SIGN}", "-")) for number in numbers]
    assert values == sorted(values)
    assert values[0] < 0 < values[-1]
    assert players
    assert all(players)
    assert width <= 380 < table_width
    assert "Content Security Policy" not in done.stderr
