"""The annotated files of callbacks: every setting with its default, and the page on callbacks."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest
import yaml

pytest.importorskip("lightning")
from lightning.pytorch import Trainer

import nemo_merge.hooks

ROOT = Path(__file__).parents[2]
NAMES = {
    "merge": "MergeCallback",
    "checkpoint_merge": "CheckpointMergeCallback",
    "continual_merge": "ContinualMergeCallback",
}
EXAMPLES = {"base": "base.nemo", "experts": ["telephone.nemo"], "output": None}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_lists_every_setting_with_its_default(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "configs" / "callbacks" / f"{name}.yaml").read_text()
    assert f"NEMO_MERGE_CALLBACKS=configs/callbacks/{name}.yaml" in text
    (entry,) = yaml.safe_load(text)["callbacks"]
    assert entry.pop("name") == name
    cls = getattr(nemo_merge.hooks, NAMES[name])
    cls(**entry)
    known = {key: item for key, item in inspect.signature(cls).parameters.items() if item.kind is not item.VAR_KEYWORD}
    assert list(entry) == list(known)
    for key, item in known.items():
        if item.default is not item.empty and not (name == "merge" and key in EXAMPLES):
            assert entry[key] == (list(item.default) if isinstance(item.default, tuple) else item.default), key


def page_blocks(language):
    page = (ROOT / "docs" / "how-to" / "callbacks.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def test_yaml_on_the_page_builds_callbacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = set()
    for block in page_blocks("yaml"):
        entries = yaml.safe_load(block)["callbacks"]
        names = [entry.pop("name") for entry in entries]
        callbacks = [
            getattr(nemo_merge.hooks, NAMES[name])(**entry) for name, entry in zip(names, entries, strict=True)
        ]
        Trainer(callbacks=callbacks, logger=False, enable_checkpointing=False)
        found |= set(names)
    assert found == set(NAMES)


def test_code_on_the_page_builds_callbacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in page_blocks("python"):
        exec(compile(block, "callbacks.md", "exec", dont_inherit=True), names)
    assert names["trainer"].callbacks[0].outcomes == []


def test_importing_the_hooks_does_not_import_lightning():
    from tests.test_package import loaded_after

    assert not loaded_after("import nemo_merge.hooks; dir(nemo_merge.hooks)") & {"lightning", "nemo", "torch"}
    assert importlib.import_module("nemo_merge.hooks").__all__
    with pytest.raises(AttributeError, match="no attribute 'MergeCalback'"):
        nemo_merge.hooks.MergeCalback  # noqa: B018
