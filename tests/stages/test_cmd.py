"""Where jobs run: on this machine and its GPUs, through a command, or as arrays of a SLURM that is a few scripts."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from nemo_merge.errors import ConfigError
from nemo_merge.stages import local, slurm
from nemo_merge.stages.engine import NAMES, Context, Stage, StageError, run
from nemo_merge.stages.local import Local, read_template
from nemo_merge.stages.placement import PLACEMENT, Placement, read_placements, visible_gpus
from nemo_merge.stages.slurm import Slurm, SlurmError
from nemo_merge.stages.tasks import Follower, JobError
from nemo_merge.stages.workers import run_jobs
from nemo_merge.training.ctc import TrainingJob
from nemo_merge.training.decode import DecodingJob
from nemo_merge.training.fine_tune import FineTuningJob
from nemo_merge.training.jobs import Job
from tests.fixtures import slurm as cluster

WORKER = """
import json, os, sys, time
for file in sys.argv[1:]:
    job = json.load(open(file))
    name = os.path.basename(file)[:-5]
    open(job["started"] + "/" + name, "w").write(str(os.getpid()))
    print("[report] " + name + " on " + repr(os.environ.get("CUDA_VISIBLE_DEVICES")), flush=True)
    print(job["text"], file=sys.stderr, flush=True)
    time.sleep(job["seconds"])
    if job["code"]:
        sys.exit(job["code"])
    print("[done] " + file, flush=True)
"""


@dataclass(frozen=True)
class Pretend(Job):
    """A job for a small script, which starts in no time."""

    kind: ClassVar[str] = "pretend"

    started: str
    code: int = 0
    seconds: float = 0.0
    text: str = "some output"

    def run(self, report):
        raise AssertionError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Job files, and a folder ``started`` with the process number of each job; the script does the jobs."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    (tmp_path / "started").mkdir()

    def command(files, processes=1):
        return [sys.executable, "-S", str(script), *map(str, files)]

    monkeypatch.setattr(local, "job_command", command)
    monkeypatch.setattr(slurm, "job_command", command)
    return tmp_path


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """State of a SLURM cluster."""
    state = cluster.install(tmp_path / "cluster")
    monkeypatch.setenv("PATH", f"{tmp_path / 'cluster' / 'bin'}:{os.environ['PATH']}")
    return state


def go(folder: Path, launcher, jobs, side_by_side=2, gpus=None, **options):
    """Runs jobs and returns the names of those that were done, and what they reported."""
    said: list[str] = []
    token = PLACEMENT.set(Placement(launcher, gpus))
    made = {name: Pretend(str(folder / "started"), **settings) for name, settings in jobs.items()}
    try:
        return list(run_jobs(made, folder / "jobs", side_by_side, said.append, **options)), said
    finally:
        PLACEMENT.reset(token)


def started(folder: Path) -> set[str]:
    return {path.name for path in (folder / "started").iterdir()}


def is_alive(folder: Path, name: str) -> bool:
    try:
        os.kill(int((folder / "started" / name).read_text()), 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


QUICK = {"every": 0.1, "patience": 0.5}
LAUNCHERS = {
    "local": lambda: Local(),
    "command": lambda: Local(template=("env", "{command}")),
    "slurm": lambda: Slurm(**QUICK),
}


@pytest.fixture(params=LAUNCHERS)
def launcher(request, queue):
    return LAUNCHERS[request.param]()


class TestEveryLauncher:
    def test_does_all_jobs_and_passes_on_what_they_report(self, folder, launcher):
        done, said = go(folder, launcher, {"a": {}, "b": {}, "c": {}})
        assert sorted(done) == ["a", "b", "c"] == sorted(started(folder))
        assert sorted(line.split()[0] for line in said if " on " in line) == ["a", "b", "c"]

    def test_a_failure_shows_its_own_output_and_lets_others_finish(self, folder, launcher, capfd):
        jobs = {"bad": {"code": 3, "seconds": 0.4, "text": "out of luck"}, "good": {"seconds": 1.2}}
        token = PLACEMENT.set(Placement(launcher))
        done = []
        try:
            made = {name: Pretend(str(folder / "started"), **settings) for name, settings in jobs.items()}
            late = {f"late{index}": Pretend(str(folder / "started"), seconds=0.1) for index in range(3)}
            with pytest.raises(JobError, match=r"(?s)bad: .*exit code 3.*\| out of luck") as caught:
                done.extend(run_jobs(made | late, folder / "jobs", 2, print))
        finally:
            PLACEMENT.reset(token)
        assert "some output" not in str(caught.value)
        assert "some output" in capfd.readouterr().out  # for the stage's log
        assert "good" in done
        assert not is_alive(folder, "good")
        assert len(started(folder)) < 5  # what waited was dropped

    def test_what_the_user_can_solve_is_one_line(self, folder, launcher):
        with pytest.raises(JobError, match=r"^bad: base.nemo: no such file$"):
            go(folder, launcher, {"bad": {"code": 1, "text": "[error] base.nemo: no such file"}})

    def test_an_interruption_ends_what_runs(self, folder, launcher):
        token = PLACEMENT.set(Placement(launcher))
        try:
            jobs = {"short": Pretend(str(folder / "started")), "long": Pretend(str(folder / "started"), seconds=60)}
            running = run_jobs(jobs, folder / "jobs", 2, print)
            assert next(running) == "short"
            wait_for(lambda: "long" in started(folder))
            assert is_alive(folder, "long")
            running.close()
        finally:
            PLACEMENT.reset(token)
        wait_for(lambda: not is_alive(folder, "long"))


def test_each_job_has_a_gpu_for_itself(folder):
    _, said = go(folder, Local(["4", "7"]), {name: {"seconds": 0.3} for name in "abc"}, 3, gpus=2)
    places = [line.split()[-1] for line in said]
    assert set(places[:2]) == {"'4'", "'7'"}
    assert len(places) == 3


def test_no_gpu_even_where_there_are_some(folder, monkeypatch, queue):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    for launcher in (Local([]), Local([], ("env", "{command}")), Slurm(cpu=True, **QUICK)):
        assert "a on ''" in go(folder, launcher, {"a": {}}, gpus=0)[1]
    assert "a on '0,1'" in go(folder, Local(), {"a": {}})[1]


class TestSlurm:
    def test_jobs_are_one_array_with_the_options_of_the_user(self, folder, queue):
        options = {"partition": "gpu", "time": "12:00:00", "exclusive": "", "mem": "4G"}
        _, said = go(folder, Slurm(options, **QUICK), {"a": {}, "b": {}, "c": {}}, 2, gpus=1)
        (call,) = (queue / "calls").read_text().splitlines()
        for word in ("--array=1-3%2", "--partition=gpu", "--time=12:00:00", "--exclusive ", "--gres=gpu:1"):
            assert word in call
        assert any(line.startswith("SLURM job 10") and "a; b; c" in line for line in said)

    def test_jobs_that_share_processes_are_as_many_elements(self, folder, queue):
        done, _ = go(folder, Slurm(**QUICK), {name: {} for name in "abcde"}, 2, together=True)
        assert sorted(done) == [*"abcde"]
        assert "--array=1-2%2" in (queue / "calls").read_text()

    def test_training_on_several_machines_is_left_to_srun(self, tmp_path, queue, monkeypatch):
        srun = tmp_path / "cluster" / "bin" / "srun"
        srun.write_text('#!/usr/bin/env bash\necho "[report] $*"\n')
        srun.chmod(0o755)
        job = FineTuningJob("base.nemo", "out.nemo", [], devices=4, num_nodes=2)
        said: list[str] = []
        token = PLACEMENT.set(Placement(Slurm({"gpus-per-node": 4}, **QUICK), 4))
        try:
            list(run_jobs({"big": job}, tmp_path, 1, said.append))
        finally:
            PLACEMENT.reset(token)
        assert "--nodes=2 --ntasks-per-node=4" in (queue / "calls").read_text()
        assert said[-1].endswith(f"-m nemo_merge.training {tmp_path / 'big.json'}")

    def test_a_task_that_vanishes_is_looked_up(self, folder, queue):
        (queue / "sacct").write_text("TIMEOUT|0:0\n")
        token = PLACEMENT.set(Placement(Slurm(**QUICK)))
        try:
            running = run_jobs({"long": Pretend(str(folder / "started"), seconds=60)}, folder / "jobs", 1, print)
            with pytest.raises(JobError, match=r"long: SLURM job 1\d+_1: TIMEOUT, exit code 0:0; log: .*long.log"):
                for _ in self._while(running, folder, queue):
                    pass
        finally:
            PLACEMENT.reset(token)

    @staticmethod
    def _while(running, folder, queue):
        """The jobs, of which SLURM kills one when it has begun."""
        import threading

        def kill():
            wait_for(lambda: "long" in started(folder))
            for pid in queue.glob("pid.*"):
                os.killpg(int(pid.read_text()), signal.SIGKILL)
            for element in queue.glob("job*/*"):
                element.unlink()

        thread = threading.Thread(target=kill)
        thread.start()
        yield from running
        thread.join()

    def test_an_interruption_cancels_the_array(self, folder, queue):
        token = PLACEMENT.set(Placement(Slurm(**QUICK)))
        try:
            jobs = {"a": Pretend(str(folder / "started")), "b": Pretend(str(folder / "started"), seconds=60)}
            running = run_jobs(jobs, folder / "jobs", 2, print)
            next(running)
            running.close()
        finally:
            PLACEMENT.reset(token)
        assert "scancel 10" in (queue / "calls").read_text()

    def test_a_queue_that_cannot_be_asked_for_a_while(self, folder, queue):
        (queue / "down").touch()
        assert go(folder, Slurm(**QUICK), {"a": {"seconds": 1.0}})[0] == ["a"]

    def test_what_slurm_refuses(self, folder, queue):
        (queue / "refuse").touch()
        with pytest.raises(SlurmError, match=r"sbatch .*--partition=nosuch.*invalid partition specified"):
            go(folder, Slurm({"partition": "nosuch"}, **QUICK), {"a": {}})

    def test_no_slurm_here(self, folder, monkeypatch):
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(SlurmError, match="no sbatch here"):
            go(folder, Slurm(**QUICK), {"a": {}})

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"array": "1-3"}, "array is set by"), ({"time": 43200}, "'12:00:00'"), ({"mem": None}, "mem=None")],
    )
    def test_options_that_cannot_be(self, options, message):
        with pytest.raises(ConfigError, match=message):
            Slurm(options)

    @pytest.mark.slow
    def test_a_real_job(self, tmp_path, queue):
        token = PLACEMENT.set(Placement(Slurm(**QUICK)))
        try:
            jobs = {name: DecodingJob({}, {}, tmp_path) for name in ("a", "b")}
            assert sorted(run_jobs(jobs, tmp_path / "jobs", 2, print)) == ["a", "b"]
        finally:
            PLACEMENT.reset(token)


class TestCommand:
    def test_a_scheduler_of_kaldi_gets_its_log(self, folder):
        script = folder / "run.pl"
        script.write_text('#!/usr/bin/env bash\n[[ "$1" == --gpu ]] && shift 2\nlog=$1; shift\n"$@" > "$log" 2>&1\n')
        script.chmod(0o755)
        done, said = go(folder, Local(template=read_template(str(script), 1)), {"a": {}, "b": {"seconds": 0.5}}, gpus=1)
        assert sorted(done) == ["a", "b"]
        assert len(said) == 2
        assert (folder / "jobs" / "a.log").is_file()

    @pytest.mark.parametrize(
        ("text", "gpus", "words"),
        [
            ("run.pl --mem 4G", 0, ("run.pl", "--mem", "4G", "{log}", "{command}")),
            ("queue.pl", 2, ("queue.pl", "--gpu", "{gpus}", "{log}", "{command}")),
            ("srun -p gpu", 1, ("srun", "-p", "gpu", "{command}")),
            ("ssh gpu1 'cd /x && {command}'", 0, ("ssh", "gpu1", "cd /x && {command}")),
        ],
    )
    def test_words(self, text, gpus, words):
        assert read_template(text, gpus) == words

    def test_within_a_word_the_command_is_quoted_for_a_shell(self, folder):
        jobs = folder / "a folder with 'quotes'"
        jobs.mkdir()
        (jobs / "started").mkdir()
        assert go(jobs, Local(template=("bash", "-c", "true && {command}")), {"a": {}})[0] == ["a"]

    @pytest.mark.parametrize(("text", "message"), [("ssh {comand}", "did you mean 'command'"), ("a 'b", "quot")])
    def test_mistakes(self, text, message):
        with pytest.raises(ConfigError, match=message):
            read_template(text, 0)


class TestSetting:
    def read(self, setting, folder=Path(), gpus=None, jobs=None):
        return read_placements(setting, NAMES, folder, gpus=gpus, jobs=jobs)

    def test_each_stage_may_have_its_own(self, tmp_path):
        (tmp_path / "cluster.yaml").write_text(
            "train: {slurm: {partition: gpu, gres: 'gpu:2'}}\ndecode: srun -n 1 {command}\n"
        )
        found = self.read("cluster.yaml", tmp_path)
        assert (found["train"].launcher, found["train"].gpus) == (Slurm({"partition": "gpu", "gres": "gpu:2"}), 2)
        assert found["train"].side_by_side == 16
        assert found["decode"].launcher.template == ("srun", "-n", "1", "{command}")
        assert found["merge"].launcher.template == ()

    def test_gpus(self, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,GPU-ab")
        assert visible_gpus() == ["3", "5", "GPU-ab"]
        assert self.read("local")["train"].launcher.gpus == ["3", "5", "GPU-ab"]
        assert self.read("local", gpus=2)["train"].launcher.gpus == ["3", "5"]
        assert [self.read("local", gpus=2, jobs=jobs)["train"].side_by_side for jobs in (None, 1, 8)] == [2, 1, 2]
        assert self.read("local", gpus=0, jobs=8)["train"].side_by_side == 8
        assert self.read("local", gpus=0)["train"].launcher.gpus == []
        with pytest.raises(ConfigError, match="--ngpu 4: this machine shows 3 GPUs"):
            self.read("local", gpus=4)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
        assert self.read("local")["train"].gpus is None

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("slrum", "did you mean 'slurm'"),
            ({"trian": "slurm"}, "did you mean 'train'"),
            ({"slurm": {}, "partition": "gpu"}, "should be"),
            ({"slurm": ["gpu"]}, "should be"),
            (3, "should be local, slurm, or a command"),
            ("nosuch.yaml", "nosuch.yaml: no such file"),
        ],
    )
    def test_mistakes(self, setting, message):
        with pytest.raises(ConfigError, match=message):
            self.read(setting)


class TestFewerGpus:
    @pytest.mark.parametrize(
        ("gpus", "expected"), [(None, (4, 6)), (0, (4, 6)), (8, (4, 6)), (2, (2, 12)), (1, (1, 24))]
    )
    def test_the_batches_of_a_step_stay(self, gpus, expected):
        job = TrainingJob("x.nemo", [], 10, 1e-3, init_from="y.nemo", workers=4, batch_size=6).placed(gpus, True)
        assert (job.workers, job.batch_size) == expected

    def test_fine_tuning_takes_batches_in_turn(self):
        job = FineTuningJob("x.nemo", "y.nemo", [], devices=4, accumulate=2)
        placed = job.placed(2, resume=False)
        assert (placed.devices, placed.accumulate, placed.resume) == (2, 4, False)
        assert job.placed(4, resume=True) == job
        with pytest.raises(ConfigError, match=r"y\.nemo: devices=4 cannot be shared out evenly over 3 GPUs"):
            job.placed(3, resume=True)

    def test_several_machines_need_a_cluster(self, tmp_path):
        job = FineTuningJob("x.nemo", "y.nemo", [], num_nodes=2)
        with pytest.raises(ConfigError, match="num_nodes=2 needs a cluster"):
            list(run_jobs({"a": job}, tmp_path, 1, print))


def test_a_stage_runs_its_jobs_where_it_is_told(folder, queue, capsys):
    def train(context):
        jobs = {"a": Pretend(str(folder / "started")), "b": Pretend(str(folder / "started"), 1, text="no luck")}
        list(run_jobs(jobs, context.expdir / "jobs", 2, context.say))

    placements = {"train": Placement(Slurm(**QUICK))}
    context = Context({}, folder, folder / "exp", placements=placements)
    with pytest.raises(StageError, match=r"(?s)stage 3 \(train\) failed: b: SLURM job .*no luck.*--stage 3"):
        run([Stage("train", "train", train)], context, resume_command="./run.sh")
    assert "--array=1-2%2" in (queue / "calls").read_text()
    assert PLACEMENT.get() == Placement()


def test_a_log_is_read_line_by_line(tmp_path):
    log = Follower(tmp_path / "log")
    assert log.lines() == []
    log.path.write_bytes(b"one\ntw")
    assert log.lines() == ["one\n"]
    with open(log.path, "ab") as file:
        file.write(b"o\n\xff")
    assert log.lines() == ["two\n"]
    assert log.lines(last=True) == ["\N{REPLACEMENT CHARACTER}"]
