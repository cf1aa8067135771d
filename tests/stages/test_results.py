"""Scoring and reporting of what was decoded, without decoding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_merge.reporting.experiment.report import build_page
from nemo_merge.scoring import mapsswe
from nemo_merge.stages.engine import Context
from nemo_merge.stages.results import report_options, score, write_report

REFERENCES = ["a b c d e f g h", "i j k l m n o p", "q r s t u v w x"]
HEARD = {
    "base": ["x x x x x x x x"] * 3,
    "telephone": REFERENCES,
    "soup": ["a x c d e f x h", "i j x l m n o p", "q r s t x v w x"],
    "ties": ["a x c d e f g h", "i j k l m n o p", "q r s t u v w x"],
    "tsvm": REFERENCES,
}


@pytest.fixture
def context(tmp_path: Path) -> Context:
    config = {
        "title": "A title",
        "command": "run.sh",
        "corpus": {"telephone": {"test": 3}, "ood_kitchen": {"test": 3}},
        "domains": ["telephone"],
        "decode": {"sets": ["telephone", "ood_kitchen"]},
        "merge": {"methods": {"soup": {}, "ties": {"density": 0.2}, "tsvm": {}}},
        "score": {"baseline": "soup"},
    }
    for model, texts in HEARD.items():
        folder = tmp_path / "exp" / "decode" / model
        folder.mkdir(parents=True)
        rows = [
            {"id": f"u{i}", "text": r, "pred_text": h} for i, (r, h) in enumerate(zip(REFERENCES, texts, strict=True))
        ]
        for name in config["decode"]["sets"]:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "exp" / "merged").mkdir()
    (tmp_path / "exp" / "merged" / "cpu_seconds.json").write_text('{"soup": 0.1, "ties": 0.2, "tsvm": 0.3}')
    return Context(config, tmp_path / "data", tmp_path / "exp")


def test_what_is_heard_is_written_as_what_was_said(context):
    """The corpus says how: stage 2 puts its transcripts through a text profile."""
    pytest.importorskip("matplotlib")
    context.config["corpus"]["telephone"] = {"cuts": {"test": "telephone.json"}, "text": "words"}
    for file in (context.expdir / "decode" / "ties").iterdir():
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows = [{**row, "pred_text": row["text"].upper() + "."} for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    score(context)
    found = json.loads((context.expdir / "scores.json").read_text())["sets"]["ties"]
    assert found["telephone"]["substitutions"] == 0
    assert found["ood_kitchen"]["substitutions"] == 24  # which says nothing
    page = build_page(context.expdir, report_options(context))
    shown = {name: part.counts("ties", name).errors for part in page.sections for name in part.sets}
    assert shown == {"telephone": 0, "ood_kitchen": 24}


def test_merges_are_compared_with_the_baseline(context):
    pytest.importorskip("matplotlib")
    score(context)
    found = json.loads((context.expdir / "scores.json").read_text())
    assert found["sets"]["soup"]["telephone"]["substitutions"] == 4
    assert set(found["significance"]) == {"ties", "tsvm"}
    test = mapsswe(REFERENCES, HEARD["ties"], HEARD["soup"])
    assert found["significance"]["ties"]["p_value"] == pytest.approx(test.p_value)
    assert found["significance"]["ties"]["p_holm"] >= test.p_value
    write_report(context)
    (line,) = [line for line in (context.expdir / "RESULTS.md").read_text().splitlines() if line.startswith("| ties (")]
    assert line.split(" | ")[4] == f"{found['significance']['ties']['p_holm']:.3f}"
