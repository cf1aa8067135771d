"""``nemo-merge extend``, ``forget`` and ``pack``."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from nemo_merge import merge, open_checkpoint
from nemo_merge.cli import cli
from tests.fixtures.models import family, same, write_nemo


def run(*words):
    result = CliRunner().invoke(cli, list(map(str, words)))
    assert result.exit_code == 0, result.output
    return result.output


def test_a_language_comes_and_another_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base, experts = family()
    write_nemo(tmp_path / "base.nemo", base)
    for name, tensors in zip(("pt", "es", "it"), experts, strict=True):
        write_nemo(tmp_path / f"{name}.nemo", tensors)
    merge("base.nemo", ["pt.nemo", "es.nemo"], "lors", output="two.nemo")
    said = run("pack", "--merged", "two.nemo", "-o", "packs", "--keep", "1")
    assert "packs/pt.pack.safetensors: pt packed into" in said
    assert "es packed into" in said
    said = run("extend", "two.nemo", "it.nemo", "-o", "three.nemo", "--packs", "packs", "--rank", "2", "--keep", "0.1")
    assert "three.nemo: merged again in" in said
    assert "holds pt, es, it\n" in said
    assert "packs/it.pack.safetensors: it packed into" in said
    for name in ("pt", "es", "it"):
        (tmp_path / f"{name}.nemo").unlink()
    said = run("forget", "three.nemo", "it", "-o", "back.nemo", "--packs", "packs")
    assert "back.nemo: merged again in" in said
    with open_checkpoint("two.nemo") as two, open_checkpoint("back.nemo") as back:
        assert same(dict(two), dict(back))
    merge("base.nemo", ["packs/pt.pack.safetensors", "packs/es.pack.safetensors"], "lors", output="packed.nemo")
    with open_checkpoint("two.nemo") as two, open_checkpoint("packed.nemo") as packed:
        assert same(dict(two), dict(packed))
    card = (tmp_path / "three.nemo.README.md").read_text()
    assert "nemo-merge forget three.nemo" in card


WRONG = {
    "no record": (["extend", "base.nemo", "pt.nemo", "-o", "m.nemo"], "carries no record of a merge"),
    "no model": (["extend", "nothing.nemo", "pt.nemo", "-o", "m.nemo"], "no such file"),
    "no base": (["pack", "pt.nemo", "-o", "packs"], "--base is missing"),
    "both": (["pack", "pt.nemo", "--merged", "two.nemo", "-o", "packs"], "either EXPERTS or --merged"),
    "neither": (["pack", "-o", "packs"], "either EXPERTS or --merged"),
    "one file": (["pack", "pt.nemo", "es.nemo", "--base", "base.nemo", "-o", "p.safetensors"], "a file holds one pack"),
    "one name": (["pack", "a/pt.nemo", "b/pt.nemo", "--base", "base.nemo", "-o", "p"], "would get one pack"),
    "a name for two": (["pack", "a", "b", "--base", "base.nemo", "-o", "p", "--name", "x"], "--name is for a single"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_wrong_calls_are_one_message(words, message, tmp_path, monkeypatch):
    from nemo_merge.errors import NemoMergeError

    monkeypatch.chdir(tmp_path)
    write_nemo(tmp_path / "base.nemo", family()[0])
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 2 or isinstance(result.exception, NemoMergeError)
    assert message in result.output + str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["base.nemo"]


@pytest.mark.slow
def test_help_does_without_torch():
    code = (
        "import sys; from nemo_merge.cli import cli\n"
        "for verb in ('extend', 'forget', 'pack'):\n"
        "    cli.main([verb, '--help'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ), stdout=subprocess.DEVNULL)
