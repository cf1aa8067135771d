"""Scoring works where neither torch nor a toolkit is installed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import nemo_merge.scoring

from ..test_package import loaded_after

FOLDER = Path(nemo_merge.scoring.__file__).parent
FOREIGN = {"torch", "nemo", "lightning", "lhotse", "pandas"}


@pytest.mark.parametrize("file", sorted(FOLDER.rglob("*.py")), ids=lambda file: str(file.relative_to(FOLDER)))
def test_nothing_heavy_is_imported(file):
    imported = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imported.add((node.module or "").split(".")[0])
    assert not imported & FOREIGN


def test_nothing_heavy_is_loaded():
    used = "from nemo_merge.scoring import mapsswe, pier, word_error_rate as w; w(['a'], ['b']); pier(['a'], ['b']); mapsswe(['a'], ['b'], ['a'])"
    assert not loaded_after(used) & FOREIGN
    assert "numpy" not in loaded_after("import nemo_merge.scoring")
