"""``recipes/*/run.sh`` as users call them, without training anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EP_MINI = Path(__file__).parents[2] / "recipes" / "ep_mini" / "run.sh"
RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*/run.sh"))


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run([str(script), *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("script", RECIPES, ids=lambda path: path.parent.name)
class TestEveryRecipe:
    def test_is_short_and_executable(self, script):
        assert len(script.read_text().splitlines()) <= 40
        assert os.access(script, os.X_OK)

    def test_help_explains_the_stages(self, script):
        done = run(script, "--help")
        assert done.returncode == 0
        for text in ("--stage", "--stop-stage", "--ngpu", "--cmd", "--resume", "3  train", "8  report", "KEY=VALUE"):
            assert text in done.stdout

    def test_dry_run_in_an_empty_folder(self, script, tmp_path):
        folders = ["--expdir", str(tmp_path / "exp"), "--datadir", str(tmp_path / "data")]
        done = run(script, "--dry_run", "--stage", "0", "--stop_stage", "2", *folders)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("WOULD RUN") == 3
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "5", "--stop_stage", "2"], "first before last"),
        (["--stage", "77"], "stages go from 0 to 9"),
        (["--stages", "merg"], "did you mean 'merge'?"),
        (["--skip-stages", "42"], "no stage '42'"),
        (["--stages", "decode"], "start with --stage 2"),
        (["--nosuch"], "No such option '--nosuch'. Did you mean"),
        (["--ngpo", "1"], "There are --cmd, --config, --datadir, --dry-run"),
        (["--ngpu", "-1"], "-1 is not in the range x>=0"),
        (["--ngpu", "77", "--cmd", "local"], "--ngpu 77: this machine shows"),
        (["--cmd", "slrum"], "did you mean 'slurm'?"),
        (["--stages", "5"], "no stage '5'"),
        (["--stage", "5", "--stop_stage", "5"], "which has 0 (download), 1 (prepare)"),
        (["trian.base.steps=3"], "did you mean 'train'?"),
    ],
)
def test_mistakes_exit_with_two(tmp_path, arguments, message):
    done = run(EP_MINI, "--expdir", str(tmp_path), *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
