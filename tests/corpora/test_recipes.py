"""Every recipe on a small corpus of its layout: what comes out, that it is valid, and that a second run changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemo_merge.corpora import corpora, find, find_prepared

from .layouts import LAYOUTS

lhotse = pytest.importorskip("lhotse")
pytest.importorskip("pyarrow")


def rows_of(manifests: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    return sorted((split, s.text, s.language) for split, found in manifests.items() for s in found["supervisions"])


def state(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("make", LAYOUTS, ids=lambda make: make.__name__)
def test_recipe(make, tmp_path):
    source, output = tmp_path / "source", tmp_path / "output"
    source.mkdir()
    made = make(source)
    corpus = find(made.recipe)
    manifests = corpus.prepare(source, output, num_jobs=2, **made.options)
    assert rows_of(manifests) == sorted(made.rows)

    splits = {split for split, *_ in made.rows}
    kinds = ("recordings", "supervisions", "cuts")
    names = {f"{made.stem}_{kind}_{split}.jsonl.gz" for kind in kinds for split in splits}
    written = {path.name for path in output.iterdir() if path.is_file() and not path.name.startswith(".")}
    assert names | {f"{made.stem}.json"} <= written
    assert written - names <= {f"{made.stem}.json", *(f"{made.stem}_problems_{split}.jsonl" for split in splits)}

    for split, found in manifests.items():
        lhotse.validate_recordings_and_supervisions(found["recordings"], found["supervisions"], read_data=True)
        cuts = lhotse.CutSet.from_file(output / f"{made.stem}_cuts_{split}.jsonl.gz")
        lhotse.qa.validate(cuts)
        for cut in cuts:
            (supervision,) = cut.supervisions
            assert supervision.id == cut.id
            assert (supervision.start, supervision.duration) == (0.0, cut.duration)
            assert cut.load_audio().shape == (1, cut.num_samples)
            custom = supervision.custom
            assert custom["corpus"] == made.recipe
            assert custom["domain"] == (made.domain or made.options.get("domain") or corpus.domain)
            assert supervision.text
            assert custom["orig_text"]
            for language, start, end in custom["language_spans"]:
                part = supervision.text[start:end]
                assert part == part.strip() != ""
                assert language.split("-")[0] in supervision.language.split("-")
            if supervision.text in made.spans:
                assert custom["language_spans"] == made.spans[supervision.text]
        several = any(sum(s.recording_id == r.id for s in found["supervisions"]) > 1 for r in found["recordings"])
        assert several == made.conversation
        (prepared,) = find_prepared(output, corpus=made.stem)
        counts = prepared.splits[split]
        assert counts["utterances"] == len(cuts)
        assert counts["hours"] == pytest.approx(sum(cut.duration for cut in cuts) / 3600, abs=1e-6)
        assert counts["skipped"].keys() <= {"tag"}

    before = state(output)
    again = corpus.prepare(source, output, **made.options)
    assert rows_of(again) == rows_of(manifests)
    assert state(output) == before
    memory = corpus.prepare(source, None, **made.options)
    assert rows_of(memory) == rows_of(manifests)
    assert list(prepared.splits) == list(manifests)


def test_every_recipe_is_tested(tmp_path):
    tested = set()
    for number, make in enumerate(LAYOUTS):
        (tmp_path / str(number)).mkdir()
        tested.add(make(tmp_path / str(number)).recipe)
    assert tested == {corpus.name for corpus in corpora()}
