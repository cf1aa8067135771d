"""What the pages about scoring say is what the program does."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_merge.cli.score import command

DOCS = Path(__file__).parents[2] / "docs"
HOW_TO, EXPLANATION = DOCS / "how-to" / "score.md", DOCS / "explanation" / "scoring.md"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def printed(code: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "docs", "exec", dont_inherit=True), {"__name__": "example"})
    return out.getvalue()


def test_the_example_prints_what_stands_below_it(tmp_path):
    pytest.importorskip("num2words")
    program = f'nemo-merge() {{ "{sys.executable}" -m nemo_merge "$@"; }}\n'
    (example,) = [block for block in blocks(HOW_TO, "bash") if "cat > ref.json" in block]
    done = subprocess.run(["bash", "-c", program + example], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == blocks(HOW_TO, "text")[0], done.stderr
    assert "tsvm.txt:4: u4 is not in ref.json" in done.stderr


def test_commands_are_valid():
    for page in (HOW_TO, EXPLANATION):
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True) if line.startswith("nemo-merge score") else []
                if words:
                    context = command.make_context("score", words[2:])
                    assert context.params["hypotheses"]


def test_python_of_the_how_to():
    pytest.importorskip("num2words")
    (code,) = blocks(HOW_TO, "python")
    assert printed(code).split("\n")[:3] == re.findall(r"# (.*)$", code, re.MULTILINE)


def test_the_table_of_profiles():
    pytest.importorskip("num2words")
    pytest.importorskip("whisper_normalizer")
    (code,) = blocks(EXPLANATION, "python")
    assert printed(code) in EXPLANATION.read_text(encoding="utf-8")
