"""A recipe that gets a signal ends its jobs, and goes on where it was when it is started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.stages.test_cmd import WORKER

RECIPE = """
import signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from nemo_merge.stages import __main__ as stages, local
from nemo_merge.stages.engine import Stage
from nemo_merge.stages.workers import run_jobs
from tests.stages.test_cmd import Pretend

signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where tests run in the background
local.job_command = lambda files, processes=1: [sys.executable, "-S", {worker!r}, *map(str, files)]

def train(context):
    missing = {{
        name: Pretend({started!r}, seconds=seconds)
        for name, seconds in context.config["seconds"].items()
        if not context.is_fresh(name, [])
    }}
    for name in run_jobs(missing, context.expdir / "jobs", 2, context.say):
        context.mark_fresh(name)

stages.RECIPES = {{"pretend": (Stage("train", "train", train),)}}
stages.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_jobs_are_ended_and_what_is_done_stays(tmp_path, number):
    started = tmp_path / "started"
    started.mkdir()
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "x.yaml").write_text("recipe: pretend\ncorpus: {}\nseconds: {short: 0, long: 60}\n")
    program = RECIPE.format(
        root=str(Path(__file__).parents[2]), worker=str(tmp_path / "worker.py"), started=str(started)
    )
    command = [sys.executable, "-c", program, "--config", str(tmp_path / "conf" / "x.yaml")]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    part = tmp_path / "exp" / ".done" / "parts" / "short.json"
    until = time.monotonic() + 60
    while not (part.is_file() and (started / "long").is_file() and (started / "long").read_text()):
        assert time.monotonic() < until
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(number)
    _, message = running.communicate(timeout=60)
    assert running.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert "run the same command again to go on" in message
    assert "Traceback" not in message
    with pytest.raises(ProcessLookupError):
        os.kill(int((started / "long").read_text()), 0)
    marker = tmp_path / "exp" / ".done" / "03_train.json"
    assert not marker.exists()
    if number == signal.SIGINT:
        return  # what follows is the same
    for path in started.iterdir():
        path.unlink()
    done = subprocess.run([*command, "seconds.long=0"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in started.iterdir()] == ["long"]
    assert json.loads(marker.read_text())["seconds"] >= 0


def test_it_is_started_once(tmp_path):
    (tmp_path / "x.yaml").write_text("corpus: {}\n")
    done = subprocess.run(
        [sys.executable, "-m", "nemo_merge.stages", "--config", str(tmp_path / "x.yaml")],
        env={**os.environ, "LOCAL_WORLD_SIZE": "2", "RANK": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "a recipe is started once" in done.stderr
