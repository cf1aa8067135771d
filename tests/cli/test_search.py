"""``nemo-merge sweep`` with a search in its settings, as users call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from nemo_merge.searching import Space
from nemo_merge.searching.job import SearchJob

CONFIG = Path(__file__).parents[2] / "configs" / "search.yaml"


def test_the_annotated_file_is_a_search():
    settings = yaml.safe_load(CONFIG.read_text())
    search = settings.pop("search")
    assert set(search) - {"workers"} <= set(SearchJob.__dataclass_fields__)
    space = Space.read(search["space"], len(settings["experts"]))
    assert "beta" in space.parameters["boosted_tsvm"]
    assert all("scale" in values for values in space.parameters.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["search.trails=3"], "search has no setting 'trails'; did you mean 'trials'"),
        (["~search.space"], "search.space is missing"),
        (["search=3"], "search=3 is not a mapping"),
        (["method=ties"], "leave method and grid out"),
        (["search.workers=0"], "search.workers=0 is not a positive number"),
        (["~base"], "base= is missing"),
        (["as_adapter=4"], "as_adapter is for nemo-merge merge"),
        (["baes=x"], "no setting 'baes'"),
        ([], "base.nemo"),  # which does not exist
    ],
)
def test_mistakes_are_one_message(command_line, tmp_path, monkeypatch, changes, message):
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    code, _, err = command_line("sweep", CONFIG, *changes)
    assert code == 2
    assert message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_search_with_two_workers(command_line, tmp_path, monkeypatch):
    """Whisper models without knowledge: what is looked at is that trials are decoded, counted and kept."""
    pytest.importorskip("optuna")
    pytest.importorskip("transformers")
    pytest.importorskip("lhotse")
    from tests.fixtures.audio import write_audio
    from tests.fixtures.whisper import write_whisper

    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b")):
        write_whisper(tmp_path / name, seed=seed)
    rows = [{"audio_filepath": str(path), "text": "bom dia"} for path in write_audio(tmp_path / "audio", 2, 0.5)]
    (tmp_path / "dev.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "base": "base",
        "experts": ["a", "b"],
        "output": "out",
        "search": {
            "space": {"method": ["soup", "ties"], "scale": {"low": 0.2, "high": 1.0}},
            "in_domain": {"news": "dev.json"},
            "metric": "cer",
            "trials": 4,
            "workers": 2,
            "decode": {"language": "en"},
        },
    }
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(settings))
    code, out, err = command_line("sweep", "search.yaml")
    assert code == 0, err + "".join(path.read_text() for path in tmp_path.glob("out/*.log"))
    assert out.count("trial ") == 4
    assert "4 merges measured, 0 cannot be merged" in out
    assert (tmp_path / "out" / "best" / "model.safetensors").is_file()
    code, out, _ = command_line("sweep", "search.yaml")
    assert (code, out.splitlines()[0]) == (0, "goes on after 4 trials")
    assert "trial " not in out
    assert not list((tmp_path / "out" / ".trials").glob("[0-9]*"))
