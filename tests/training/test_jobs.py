"""Jobs whose fields are settings of a recipe."""

from __future__ import annotations

import pytest

from nemo_merge.errors import ConfigError
from nemo_merge.training.ctc import TrainingJob
from nemo_merge.training.jobs import job_from

FILLED = {"output": "m.nemo", "cuts": ["c.jsonl.gz"], "model": {}}
SETTINGS = {"steps": 3, "learning_rate": 1e-3}


def test_a_job_is_made_from_settings():
    assert job_from(TrainingJob, SETTINGS, "train.base", **FILLED) == TrainingJob(**FILLED, **SETTINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**SETTINGS, "stesp": 3}, "train.base: there is no setting 'stesp'; did you mean 'steps'"),
        ({**SETTINGS, "output": "other.nemo"}, "there is no setting 'output'"),  # it is not the user's to choose
        ({"steps": 3}, "train.base: says nothing about learning_rate"),
    ],
)
def test_settings_that_a_job_does_not_have_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        job_from(TrainingJob, settings, "train.base", **FILLED)
