"""What the page on hooks shows works as it stands there."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from nemo_merge.hooks import unregister
from nemo_merge.hooks.request import MergeRequest

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "nemo-hooks.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def yaml_with(key: str) -> dict:
    (found,) = [content for block in blocks("yaml") if key in (content := yaml.safe_load(block))]
    return found


def test_settings_of_merges_are_valid():
    request = MergeRequest.read(yaml_with("base"), "page")
    assert (request.settings.base, request.method.name) == ("base.nemo", "ties")
    (block,) = [block for block in blocks("yaml") if block.startswith("init_from_merge:")]
    request = MergeRequest.read(yaml.safe_load(block)["init_from_merge"], "page", parts=True)
    assert (request.include, request.exclude) == (["encoder"], [])


@pytest.mark.nemo
@pytest.mark.skipif(find_spec("nemo") is None, reason="NeMo is not installed")
def test_the_code_runs(characters, tmp_path, monkeypatch):
    from nemo_merge import open_checkpoint

    for name, path in zip(("base", "a", "b"), (characters.base, *characters.experts), strict=True):
        shutil.copy(path, tmp_path / f"{name}.nemo")
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump(yaml_with("base")))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    try:
        for block in blocks("python"):
            exec(compile(block, "nemo-hooks.md", "exec", dont_inherit=True), names)
    finally:
        unregister()
    assert names["loaded"]
    assert all(name.startswith("encoder") for name in names["loaded"])
    with open_checkpoint("merged.nemo") as merged:
        assert merged.metadata.provenance["method"]["name"] == "ties"


@pytest.mark.nemo
@pytest.mark.skipif(find_spec("nemo") is None, reason="NeMo is not installed")
def test_the_file_of_callbacks_is_valid():
    from nemo_merge.hooks import callbacks_from_config

    (callback,) = callbacks_from_config(yaml_with("callbacks")["callbacks"])
    assert type(callback).__name__ == "ProvenanceCallback"
