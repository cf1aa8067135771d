"""Methods from packages of third parties, found through the entry point ``nemo_merge.methods``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-method.md"


def install(folder: Path, name: str, module: str, content: str) -> None:
    """What pip leaves of a package with one entry point: a module and its metadata."""
    (folder / f"{module}.py").write_text(content)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[nemo_merge.methods]\n{name} = {module}\n")


def run(folder: Path, code: str) -> tuple[dict, str]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(folder)}, check=True
    )
    return json.loads(done.stdout), done.stderr


def test_the_example_of_the_documentation_as_a_package(tmp_path):
    code = PAGE.read_text().split("```python\n")[1].split("```")[0]
    install(tmp_path, "signed", "signed_mean", code)
    found, _ = run(
        tmp_path,
        "import json, torch; from nemo_merge import merge_state_dicts, methods;"
        "assert 'signed_mean' in methods.names();"
        "a, b = {'w': torch.zeros(2, 2)}, {'w': torch.ones(2, 2)};"
        "print(json.dumps(merge_state_dicts(a, [a, b], 'signed_mean', power=0.0)['w'].tolist()))",
    )
    assert found == [[0.5, 0.5], [0.5, 0.5]]


def test_a_plug_in_that_fails_is_named_and_does_not_stand_in_the_way(tmp_path):
    install(tmp_path, "broken", "broken_method", "raise RuntimeError('not today')")
    names, errors = run(tmp_path, "import json; from nemo_merge import methods; print(json.dumps(methods.names()))")
    assert "soup" in names
    assert "broken (broken_method) cannot be loaded: not today" in errors
