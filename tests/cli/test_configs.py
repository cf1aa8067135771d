"""The files under ``configs/`` are what the code says: same names, same defaults, and they run."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from nemo_merge import methods
from nemo_merge.cli.settings import compose
from nemo_merge.settings import MergeSettings

FOLDER = Path(__file__).parents[2] / "configs" / "merge"


def test_there_is_a_file_for_every_method():
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == methods.names()


@pytest.mark.parametrize("name", methods.names())
def test_a_file_holds_the_defaults(name):
    path = FOLDER / f"{name}.yaml"
    content = yaml.safe_load(path.read_text())
    settings, method = compose([str(path)])
    assert method == methods.get(name)
    assert settings == MergeSettings()
    assert set(content.pop("method")) == {"name", *asdict(method)}
    assert content == asdict(MergeSettings())


@pytest.mark.parametrize("name", methods.names())
def test_a_file_opens_with_the_command_that_runs_it(name):
    text = (FOLDER / f"{name}.yaml").read_text()
    (line,) = re.findall(r"^#   (nemo-merge merge .*)$", text, re.MULTILINE)
    _, verb, path, *arguments = shlex.split(line)
    assert (verb, path) == ("merge", f"configs/merge/{name}.yaml")
    settings, method = compose([str(FOLDER.parents[1] / path), *arguments])
    assert method.name == name
    assert settings.experts == (["lora-a", "lora-b"] if method.uses_posteriors else ["a.nemo", "b.nemo"])
