"""What is handed on is complete, can be checked, and holds no speech."""

from __future__ import annotations

import json
import subprocess
import tarfile

import pytest
import yaml

from nemo_merge import merge, open_checkpoint
from nemo_merge.errors import ConfigError
from nemo_merge.stages.models import merged_path
from nemo_merge.stages.pack import pack, packed_files, packed_models
from nemo_merge.stages.results import score, write_report
from tests.stages.test_results import HEARD, REFERENCES, context

__all__ = ["context"]  # a fixture


@pytest.fixture
def finished(context, nemo_family):
    """An experiment after its report."""
    pytest.importorskip("matplotlib")
    base, experts = nemo_family
    for name in context.config["merge"]["methods"]:
        merge(base, experts, name, output=merged_path(context, name))
    context.config["pack"] = {}
    for name in context.config["decode"]["sets"]:  # the best model errs too, so that there are examples
        (context.expdir / "decode" / "tsvm" / f"{name}.jsonl").write_text(
            (context.expdir / "decode" / "ties" / f"{name}.jsonl").read_text()
        )
    score(context)
    write_report(context)
    return context


def test_what_is_handed_on(finished):
    pack(finished)
    check_files(finished)
    check_that_there_is_no_speech(finished)
    finished.config["pack"] = {"models": ["tsvm"], "archive": True}
    pack(finished)
    assert [path.name for path in (finished.expdir / "pack" / "models").iterdir()] == ["tsvm.nemo"]
    with tarfile.open(finished.expdir / "pack.tar.gz") as tar:
        assert "pack/models/tsvm.nemo" in tar.getnames()
    assert all(path.is_file() for path in packed_files(finished))
    assert not [path.name for path in finished.expdir.iterdir() if "partial" in path.name]


def check_files(finished):
    folder = finished.expdir / "pack"
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    each = {
        f"{kind}/{name}{suffix}"
        for name in ("soup", "ties", "tsvm")
        for kind, suffix in (("models", ".nemo"), ("records", ".yaml"), ("cards", ".md"))
    }
    assert found == each | {
        "README.md", "RESULTS.md", "SHA256SUMS", "config.json", "environment.json", "report.html", "requirements.txt",
        "scores.json", "wer.png",
    }  # fmt: skip
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert checked.returncode == 0
    assert len(checked.stdout.splitlines()) == len(found) - 1
    assert yaml.safe_load((folder / "records" / "ties.yaml").read_text())["method"]["name"] == "ties"
    with open_checkpoint(folder / "models" / "ties.nemo") as checkpoint:
        assert checkpoint.metadata.provenance
    environment = json.loads((folder / "environment.json").read_text())
    assert {"date", "python", "torch", "nemo_merge"} <= environment["environment"].keys()
    assert any(line.startswith("torch==") for line in (folder / "requirements.txt").read_text().splitlines())
    card = (folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "nemo"
    assert "`models/soup.nemo`" in card


def check_that_there_is_no_speech(finished):
    for page, has_them in ((finished.expdir / "report.html", True), (finished.expdir / "pack" / "report.html", False)):
        assert ('class="aligned"' in page.read_text()) is has_them
        assert (" u0<" in page.read_text()) is has_them
    for path in (finished.expdir / "pack").rglob("*"):
        if path.is_file() and path.suffix != ".nemo":
            content = path.read_bytes()
            for text in (*REFERENCES, *HEARD["soup"]):
                assert text.encode() not in content, path
            assert b"data:audio" not in content


@pytest.mark.parametrize(
    ("settings", "message"), [({"models": ["tvsm"]}, "did you mean 'tsvm'"), ({"modles": []}, "did you mean 'models'")]
)
def test_mistakes(context, settings, message):
    with pytest.raises(ConfigError, match=message):
        packed_models({**context.config, "pack": settings})
