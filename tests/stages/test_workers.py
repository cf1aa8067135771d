"""Jobs run in processes of their own, or share some; neither needs NeMo to be tested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from nemo_merge.stages.workers import JobError, _shares, run_jobs
from nemo_merge.training.decode import DecodingJob
from nemo_merge.training.jobs import Job


@dataclass(frozen=True)
class Unknown(Job):
    """A job that the process which gets it cannot read."""

    kind: ClassVar[str] = "unknown"

    def run(self, report):
        raise AssertionError


@pytest.mark.parametrize("together", [False, True])
def test_every_job_is_done_and_named(tmp_path, together):
    jobs = {f"decode-{index}.{index}": DecodingJob({}, {}, tmp_path) for index in range(3)}
    done = list(run_jobs(jobs, tmp_path, 2, print, together=together))
    assert sorted(done) == sorted(jobs)
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.json" for name in jobs}


def test_what_is_done_before_a_failure_is_named(tmp_path):
    jobs = {"first": DecodingJob({}, {}, tmp_path), "second": Unknown(), "third": DecodingJob({}, {}, tmp_path)}
    running = run_jobs(jobs, tmp_path, 1, print, together=True)
    assert next(running) == "first"
    with pytest.raises(JobError, match="first, second, third: the process ended with exit code 1"):
        next(running)


def test_nothing_to_do(tmp_path):
    assert list(run_jobs({}, tmp_path, 2, print, together=True)) == []


def test_jobs_that_share_processes_are_dealt_out_by_their_work():
    work = {"long": 10.0, "a": 1.0, "b": 1.0, "middle": 5.0, "c": 1.0, "d": 2.0}
    assert _shares(work, 2) == [["long"], ["middle", "d", "a", "b", "c"]]
    assert _shares(dict.fromkeys("abcde", 1.0), 2) == [["a", "c", "e"], ["b", "d"]]
