"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import nemo_merge

PACKAGE = Path(nemo_merge.__file__).parent
MODULES = sorted(
    ".".join(("nemo_merge", *file.relative_to(PACKAGE).with_suffix("").parts))
    for file in PACKAGE.rglob("*.py")
    if any(">>>" in line and "+SKIP" not in line for line in file.read_text(encoding="utf-8").splitlines())
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    failed, attempted = doctest.testmod(importlib.import_module(name), extraglobs={"merge": nemo_merge.merge})
    assert attempted > 0
    assert failed == 0
