"""What every ``RESULTS.md`` has."""

from __future__ import annotations

from nemo_merge.reporting.document import write_document


def test_a_document_says_what_made_it(tmp_path):
    path = write_document(tmp_path / "RESULTS.md", "EP-mini", "Small.", "./run.sh", ["## A", "", "b"], {"cuts": 5.4})
    first, made, *rest = path.read_text().split("\n\n")[1:]
    assert path.read_text().startswith("# EP-mini\n")
    assert (first, made) == ("Small.", "Made by `./run.sh`.")
    assert rest[:3] == ["## A", "b", "## Environment"]  # the empty part is left out
    assert "| nemo_merge |" in rest[3]
    assert rest[-1] == "Seconds by stage: cuts 5.\n"


def test_a_document_without_a_notice(tmp_path):
    path = write_document(tmp_path / "RESULTS.md", "EP-mini", "", "./run.sh", [], {})
    assert path.read_text().startswith("# EP-mini\n\nMade by `./run.sh`.\n\n## Environment\n")
