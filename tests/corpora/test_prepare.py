"""What all recipes share: runs go on where they stopped, change nothing when nothing changed, and need little memory."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_merge.corpora import examine, find, find_prepared, prepare
from nemo_merge.errors import CorpusError

from . import layouts
from .layouts import tone, write
from .test_recipes import rows_of, state

pytest.importorskip("lhotse")
OWN = {"name": "x", "language": "pt-PT", "domain": "telephone"}


@pytest.fixture
def source(tmp_path) -> Path:
    """A Kaldi directory with twelve recordings of three segments each."""
    folder = tmp_path / "source"
    names = [f"rec{number:02d}" for number in range(12)]
    for name in names:
        tone(folder / f"{name}.wav", 2.0)
    write(folder / "wav.scp", "".join(f"{name} {name}.wav\n" for name in names))
    segments = [(f"{name}-{part}", name, 0.6 * part) for name in names for part in range(3)]
    write(folder / "segments", "".join(f"{u} {r} {start:.1f} {start + 0.5:.1f}\n" for u, r, start in segments))
    write(folder / "text", "".join(f"{u} frase {u}\n" for u, *_ in segments))
    return folder


def examined(monkeypatch) -> list[str]:
    """Ids of the recordings that are opened from now on."""
    opened: list[str] = []
    original = examine.open_recording

    def counting(audio, recording_id, folder):
        opened.append(recording_id)
        return original(audio, recording_id, folder)

    monkeypatch.setattr(examine, "open_recording", counting)
    return opened


def test_the_number_of_jobs_does_not_change_a_byte(source, tmp_path):
    for jobs in (1, 4):
        find("kaldi").prepare(source, tmp_path / str(jobs), num_jobs=jobs, **OWN)
    one, four = ({p.name: p.read_bytes() for p in (tmp_path / str(jobs)).iterdir()} for jobs in (1, 4))
    assert one == four


def test_an_interrupted_run_goes_on_where_it_stopped(source, tmp_path, monkeypatch):
    output = tmp_path / "output"

    def stop(split: str, done: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find("kaldi").prepare(source, output, progress=stop, **OWN)
    assert [path.name for path in output.iterdir()] == [".x_all.journal"]
    opened = examined(monkeypatch)
    manifests = find("kaldi").prepare(source, output, **OWN)
    assert opened == [f"rec{number:02d}" for number in range(7, 12)]
    monkeypatch.undo()
    assert rows_of(manifests) == rows_of(find("kaldi").prepare(source, **OWN))
    assert sorted(path.name for path in output.iterdir()) == sorted(
        [".x_all.state.gz", "x.json", *(f"x_{kind}_all.jsonl.gz" for kind in ("recordings", "supervisions", "cuts"))]
    )
    find("kaldi").prepare(source, tmp_path / "whole", **OWN)
    assert {p.name: p.read_bytes() for p in output.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()
    }


@pytest.mark.parametrize("damage", ["torn", "other corpus", "changed"])
def test_what_an_interrupted_run_left_is_used_only_as_far_as_it_fits(damage, source, tmp_path, monkeypatch):
    output = tmp_path / "output"

    def stop(split: str, done: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find("kaldi").prepare(source, output, progress=stop, **OWN)
    journal = output / ".x_all.journal"
    first = 7
    if damage == "torn":
        journal.write_bytes(journal.read_bytes()[:-50])
        first = 6
    elif damage == "other corpus":
        journal.write_text('"other"\n' + journal.read_text().split("\n", 1)[1])
        first = 0
    else:
        text = (source / "text").read_text()
        (source / "text").write_text(text.replace("rec03-1 frase", "rec03-1 outra"))
        first = 3
    opened = examined(monkeypatch)
    manifests = find("kaldi").prepare(source, output, **OWN)
    assert opened == [f"rec{number:02d}" for number in range(first, 12)]
    assert rows_of(manifests) == rows_of(find("kaldi").prepare(source, **OWN))


def test_a_change_of_the_corpus_or_of_an_option_is_noticed(source, tmp_path, monkeypatch):
    output = tmp_path / "output"
    find("kaldi").prepare(source, output, **OWN)
    opened = examined(monkeypatch)
    find("kaldi").prepare(source, output, **OWN)
    assert opened == []
    write(source / "text", (source / "text").read_text().replace("rec00-0 frase", "rec00-0 nova"))
    manifests = find("kaldi").prepare(source, output, **OWN)
    assert len(opened) == 12
    assert ("all", "nova rec00-0", "pt-PT") in rows_of(manifests)
    find("kaldi").prepare(source, output, **{**OWN, "domain": "lectures"})
    assert [item.corpus for item in find_prepared(output, domain="lectures")] == ["kaldi"]


def test_audio_that_was_missing_is_looked_for_again(source, tmp_path):
    output, moved = tmp_path / "output", tmp_path / "elsewhere.wav"
    (source / "rec05.wav").rename(moved)
    find("kaldi").prepare(source, output, **OWN)
    (prepared,) = find_prepared(output)
    assert prepared.splits["all"] | {"hours": 0} == {
        "recordings": 11, "utterances": 33, "hours": 0, "channels": 1, "skipped": {"missing_audio": 3}
    }  # fmt: skip
    before = state(output)
    find("kaldi").prepare(source, output, **OWN)
    assert state(output) == before
    moved.rename(source / "rec05.wav")
    find("kaldi").prepare(source, output, **OWN)
    (prepared,) = find_prepared(output)
    assert (prepared.splits["all"]["utterances"], prepared.splits["all"]["skipped"]) == (36, {})
    assert not (output / "x_problems_all.jsonl").exists()


def test_strict_looks_again_at_what_was_left_out(source, tmp_path):
    (source / "text").write_text((source / "text").read_text() + "rec99-0 nada\n")
    find("kaldi").prepare(source, tmp_path / "output", **OWN)
    with pytest.raises(CorpusError, match="rec99-0 is not in"):
        find("kaldi").prepare(source, tmp_path / "output", strict=True, **OWN)


def test_ids_are_unique_over_splits_even_of_earlier_runs(tmp_path):
    source, output = tmp_path / "source", tmp_path / "output"
    for split in ("train", "test"):
        tone(source / split / "a.wav")
        write(source / split / "wav.scp", "u a.wav\n" if split == "test" else "t a.wav\n")
        write(source / split / "text", "u um\n" if split == "test" else "t dois\n")
    assert len(find("kaldi").prepare(source, output, **OWN)) == 2
    write(source / "train" / "wav.scp", "u a.wav\n")
    write(source / "train" / "text", "u um\n")
    manifests = find("kaldi").prepare(source, output, **OWN)
    assert list(manifests) == ["test"]
    (problem,) = map(json.loads, (output / "x_problems_train.jsonl").read_text().splitlines())
    assert problem["kind"] == "duplicate_id"


def test_a_recording_id_stands_for_one_file(tmp_path):
    for number in (1, 2):
        tone(tmp_path / str(number) / "audio" / "a.wav", 2.0)
    rows = [
        {
            "audio_filepath": f"{number}/audio/a.wav",
            "offset": start,
            "duration": 0.5,
            "text": "olá",
            "id": f"{number}-{start}",
        }
        for number in (1, 2)
        for start in (0.0, 1.0)
    ]
    write(tmp_path / "m.json", "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(CorpusError, match="'audio-a' was used for another recording"):
        find("nemo_jsonl").prepare(tmp_path, strict=True, name="x", language="pt")
    found = find("nemo_jsonl").prepare(tmp_path, name="x", language="pt")["m"]
    assert [s.id for s in found["supervisions"]] == ["1-0.0", "1-1.0"]


def test_prepared_corpora_are_found(tmp_path):
    for make in (layouts.ascend, layouts.lectra, layouts.camoes_si):
        root = tmp_path / make.__name__
        root.mkdir()
        made = make(root)
        find(made.recipe).prepare(root, tmp_path / "out", **made.options)
    (tmp_path / "out" / "other.json").write_text("{}")
    found = {item.stem: item for item in find_prepared(tmp_path / "out")}
    assert list(found) == ["ascend", "camoes-si", "lectra"]
    assert [item.stem for item in find_prepared(tmp_path / "out", language="pt")] == ["camoes-si", "lectra"]
    assert [item.stem for item in find_prepared(tmp_path / "out", language="pt", split="train")] == ["lectra"]
    assert [item.stem for item in find_prepared(tmp_path / "out", domain="interviews")] == ["camoes-si"]
    assert [item.stem for item in find_prepared(tmp_path / "out", corpus="camoes_si")] == ["camoes-si"]
    assert find_prepared(tmp_path, corpus="ascend") == [found["ascend"]]
    assert found["ascend"].languages == ("zh", "en")
    assert found["lectra"].path("cuts", "train").is_file()
    with pytest.raises(CorpusError, match="no split 'dev', only test, train"):
        found["lectra"].path("cuts", "dev")
    with pytest.raises(CorpusError, match="no such folder"):
        find_prepared(tmp_path / "gone")


HUNDRED_HOURS = """
import sys
from nemo_merge.corpora import find
sizes = []
def resident():
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("VmRSS"))
    sizes.append(int(line.split()[1]) // 1024)
def progress(split, done):
    if done % 2000 == 0:
        resident()
find("nemo_jsonl").prepare(sys.argv[1], sys.argv[2], progress=progress, name="x", language="pt-PT")
resident()
print(*sizes)
"""


@pytest.mark.slow
def test_a_hundred_hours_need_no_more_memory_than_ten(tmp_path):
    """24,000 utterances of 15 s: after the first 2,000 the process grows by the ids only."""
    tone(tmp_path / "audio" / "a.wav", 15.0, 8000)
    with open(tmp_path / "train.json", "w", encoding="utf-8") as manifest:
        for number in range(24_000):
            audio = tmp_path / "audio" / f"{number % 50:02d}" / f"utterance_{number:06d}.wav"
            audio.parent.mkdir(exist_ok=True)
            os.link(tmp_path / "audio" / "a.wav", audio)
            text = " ".join(f"palavra{number % 997}" for _ in range(40))
            manifest.write(json.dumps({"audio_filepath": str(audio), "duration": 15.0, "text": text}) + "\n")
    command = [sys.executable, "-c", HUNDRED_HOURS, str(tmp_path / "train.json"), str(tmp_path / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "MALLOC_ARENA_MAX": "2"}
    )
    sizes = [int(value) for value in done.stdout.split()]
    assert len(sizes) == 13
    (prepared,) = find_prepared(tmp_path / "out")
    assert prepared.splits["all"]["hours"] == pytest.approx(100.0)
    assert max(sizes) - sizes[0] < 10, sizes
    with gzip.open(prepared.path("cuts", "all"), "rt") as lines:
        assert sum(1 for _ in lines) == 24_000


def test_the_version_is_part_of_the_key(source, tmp_path, monkeypatch):
    find("kaldi").prepare(source, tmp_path / "output", **OWN)
    monkeypatch.setattr(prepare, "VERSION", prepare.VERSION + 1)
    opened = examined(monkeypatch)
    find("kaldi").prepare(source, tmp_path / "output", **OWN)
    assert len(opened) == 12
