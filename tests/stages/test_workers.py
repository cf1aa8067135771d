"""Jobs run in processes of their own, or share some; neither needs NeMo to be tested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from nemo_merge.stages.workers import JobError, run_jobs
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
