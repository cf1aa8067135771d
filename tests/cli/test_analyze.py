"""``nemo-merge analyze`` as users call it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import yaml


@pytest.fixture
def call(command_line):
    return partial(command_line, "analyze")


@pytest.fixture
def inputs(nemo_family) -> list[str]:
    base, experts = nemo_family
    return [f"base={base}", f"experts=[{','.join(map(str, experts))}]"]


def test_analysis_from_the_command_line(call, inputs, tmp_path: Path):
    output = tmp_path / "analysis"
    code, out, err = call(*inputs, f"output={output}", "top=3", "rank=0.25", "workers=2")
    assert (code, err) == (0, "")
    summary = json.loads((output / "summary.json").read_text())
    assert summary["options"] == {"rank": 0.25, "top": 3}
    assert len(summary["top_tensors"]) == 3
    for finding in summary["findings"]:
        assert f"{finding['level']}: {finding['text'][:60]}" in out
    assert out.splitlines()[1].startswith("expert_0")
    assert (output / "norms.png").is_file()


def test_settings_from_a_file(call, nemo_family, tmp_path: Path):
    base, experts = nemo_family
    settings = {"base": str(base), "experts": list(map(str, experts)), "output": str(tmp_path / "a"), "pictures": False}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(settings))
    assert call(str(tmp_path / "s.yaml"), "top=2")[0] == 0
    assert not list((tmp_path / "a").glob("*.png"))
    assert call(str(tmp_path / "s.yaml"), "overwrite=true", "pictures=true")[0] == 0
    assert list((tmp_path / "a").glob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["methd=ties"], "there is no setting 'methd'"),
        (["picture=false"], "there is no setting 'picture'; did you mean 'pictures'?"),
        (["rank=2"], "rank=2.0 is out of range"),
        (["rank=0.1,0.2"], "several values"),
        (["top=many"], "top: Value 'many'"),
        (["top=0"], "top=0 is out of range"),
        (["~base"], "needs a base; pass base="),
        (["base=gone.nemo"], "gone.nemo: no such file"),
        (["output=/gone/folder"], "the folder /gone does not exist"),
        (["~output"], "output=FOLDER is missing"),
        (["experts=[]"], "experts=[PATH,PATH] is missing"),
    ],
)
def test_mistakes_exit_with_two_and_one_message(call, inputs, tmp_path, arguments, message):
    code, out, err = call(*inputs, f"output={tmp_path / 'out'}", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in out + err
    assert not (tmp_path / "out").exists()
