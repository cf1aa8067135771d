"""Searches over real merges of small checkpoints; only the recogniser is replaced, by a distance to known weights."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_merge.errors import ConfigError, NemoMergeError, OutputError
from nemo_merge.searching import SearchJob, Space, search
from nemo_merge.searching import study as study_module
from nemo_merge.searching.job import open_study

pytest.importorskip("optuna")

SPACE = {"method": ["task_arithmetic", "ties"], "scale": {"low": 0.1, "high": 2.0}, "ties.density": [0.2, 0.5]}


@pytest.fixture
def job(tmp_path: Path, monkeypatch) -> SearchJob:
    """Two experts whose sum is best in domain; the base itself is best for retention."""
    generator = torch.Generator().manual_seed(0)
    base = {"encoder.weight": torch.randn(8, 8, generator=generator)}
    save_file(base, tmp_path / "base.safetensors")
    deltas = [torch.randn(8, 8, generator=generator) for _ in range(2)]
    for name, delta in zip("ab", deltas, strict=True):
        save_file({"encoder.weight": base["encoder.weight"] + delta}, tmp_path / f"{name}.safetensors")
    for name in ("news", "english"):
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"audio_filepath": f"{name}.wav", "duration": 1.0, "text": "sim"})
        )

    def rates(self: SearchJob, name: str, model: str | Path) -> dict[str, float]:
        change = load_file(model)["encoder.weight"] - base["encoder.weight"]
        wanted = sum(deltas)
        news = float((change - wanted).norm() / wanted.norm())
        return {"news": news, "english": 0.1 + 0.1 * float(change.norm() / wanted.norm())}

    monkeypatch.setattr(SearchJob, "_rates", rates)
    monkeypatch.setattr("nemo_merge.training.decode.DecodingJob.check", lambda self: None)
    # in this process, one worker after the other
    monkeypatch.setattr(
        study_module,
        "_work",
        lambda job, workers, say: [study_module.replace(job, worker=i).run(say) for i in range(workers)],
    )
    return SearchJob(
        output=tmp_path / "search",
        base=str(tmp_path / "base.safetensors"),
        experts=[str(tmp_path / f"{name}.safetensors") for name in "ab"],
        space=SPACE,
        in_domain={"news": tmp_path / "news.json"},
        retention={"english": tmp_path / "english.json"},
        tolerance=1.0,
        trials=8,
    )


def changed(job: SearchJob, **values: object) -> SearchJob:
    return study_module.replace(job, **values)


@pytest.mark.parametrize(
    ("sampler", "space"),
    [
        ("tpe", SPACE),
        pytest.param("random", SPACE, marks=pytest.mark.slow),
        pytest.param("nsga2", SPACE, marks=pytest.mark.slow),
        pytest.param(
            "cmaes",
            {"method": "task_arithmetic", "scale": {"low": 0.1, "high": 2.0}, "weights": {"low": 0.0, "high": 1.0}},
            marks=pytest.mark.slow,
        ),
        ("exhaustive", {"method": ["task_arithmetic", "ties"], "scale": [0.5, 1.0, 2.0]}),
    ],
)
def test_every_sampler_finds_merges_within_the_limit(job, sampler, space):
    lines: list[str] = []
    found = search(changed(job, sampler=sampler, space=space), 2, lines.append)
    assert len(found.trials) == (6 if sampler == "exhaustive" else 8)
    assert found.chosen is not None
    assert found.chosen.retention <= 0.1 * 2.0 + 1e-9  # twice the base's 10 %
    assert found.chosen.in_domain == min(trial.in_domain for trial in found.trials if trial.allowed)
    assert sampler != "exhaustive" or any(not trial.allowed for trial in found.trials)
    assert lines[0].startswith("base: in domain 100.0 %, retention 10.0 %")
    # the settings beside the merge give the same merge
    import yaml

    from nemo_merge import merge

    settings = yaml.safe_load((job.output / "best.yaml").read_text())
    method = settings.pop("method")
    again = job.output / "again.safetensors"
    merge(**{**settings, "output": again}, method=method.pop("name"), **method)
    assert torch.equal(load_file(again)["encoder.weight"], load_file(job.output / "best.safetensors")["encoder.weight"])


def test_the_front_holds_what_no_other_merge_beats(job):
    found = search(changed(job, objective="front", sampler="nsga2", trials=10))
    best = [trial for trial in found.trials if trial.best]
    assert 1 <= len(best) < 10
    for one in best:
        assert not any(other.in_domain < one.in_domain and other.retention < one.retention for other in found.trials)
    for other in set(map(id, found.trials)) - set(map(id, best)):
        worse = next(trial for trial in found.trials if id(trial) == other)
        assert any(one.in_domain <= worse.in_domain and one.retention <= worse.retention for one in best)
    with open(job.output / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert sum(int(row["front"]) for row in rows) == len(best)
    pytest.importorskip("matplotlib")
    assert (job.output / "front.png").read_bytes().startswith(b"\x89PNG")


def test_a_search_goes_on_where_it_was(job, monkeypatch):
    real, count = SearchJob._merged_rates, 0

    def interrupted(self, number, settings):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return real(self, number, settings)

    monkeypatch.setattr(SearchJob, "_merged_rates", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(job)
    running = [trial for trial in open_study(job).trials if trial.state.name == "RUNNING"]
    assert len(running) == 1
    lines: list[str] = []
    found = search(job, 1, lines.append)
    assert lines[0] == "goes on after 3 trials"
    assert len(found.trials) == 8
    assert running[0].params in [trial.params for trial in open_study(job).trials if trial.number > 3]
    assert search(job, 1, lines.append).trials == found.trials  # nothing left to do
    assert len(search(changed(job, trials=9)).trials) == 9
    with pytest.raises(ConfigError, match="a search with other metric; choose another output"):
        search(changed(job, metric="cer"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConfigError])
def test_an_exhaustive_search_survives_its_last_proposal(job, monkeypatch, error):
    """The sampler sees there that nothing is left to propose, whether that one is interrupted, fails or is measured."""
    real = SearchJob._merged_rates

    def broken(self, number, settings):
        if number == 2:
            raise error("for the test")
        return real(self, number, settings)

    one = changed(job, sampler="exhaustive", space={"method": "task_arithmetic", "scale": [0.5, 1.0, 2.0]})
    with monkeypatch.context() as patch:
        patch.setattr(SearchJob, "_merged_rates", broken)
        if error is KeyboardInterrupt:
            with pytest.raises(error):
                search(one)
        else:
            assert search(one).failed == 1
    assert len(search(one).trials) == (3 if error is KeyboardInterrupt else 2)
    save_file({"encoder.weight": torch.zeros(8, 8)}, job.experts[0])
    with pytest.raises(ConfigError, match="a search with other experts, models"):
        search(changed(one, experts=[{"path": job.experts[0]}, job.experts[1]]))


def test_ranges_are_of_whole_numbers_where_the_parameter_is():
    ranges = {"weights": {"low": 0, "high": 1}, "scale": {"low": 0, "high": 2}, "max_iterations": {"low": 1, "high": 9}}
    space = Space.read({"method": "karcher", **ranges}, 2)
    assert {key: values.whole for key, values in space.parameters["karcher"].items()} == {
        "weights": False,
        "scale": False,
        "max_iterations": True,
    }


def test_one_worker_repeats_itself(job):
    first = search(job)
    second = search(changed(job, output=job.output.with_name("again")))
    assert [trial.settings for trial in first.trials] == [trial.settings for trial in second.trials]


def test_proposals_that_cannot_be_merged_are_told_and_counted(job):
    space = {"method": ["soup", "wrong"], "batch_norm": ["average"]}
    with pytest.raises(NemoMergeError, match="no merging method 'wrong'"):
        search(changed(job, space=space))
    lines: list[str] = []
    rules = {"none": [], "missing": [{"match": "decoder.*", "treatment": "base", "strict": True}]}
    with pytest.raises(ConfigError):
        search(
            changed(job, space={"method": "soup", "rules": {"missing": rules["missing"]}}, trials=2), 1, lines.append
        )
    assert any("cannot be merged" in line for line in lines)


def test_two_searches_do_not_share_a_folder(job):
    job.output.mkdir()
    with study_module._alone(job.output), pytest.raises(OutputError, match="another process is searching here"):
        search(job)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "say what to vary"),
        ({"method": ["ties"], "densty": [0.2]}, "no method here has 'densty'; did you mean 'density'"),
        ({"method": ["soup"], "ties.density": [0.2]}, "no method here has 'ties.density'"),
        ({"method": ["ties"], "density": {"low": 0.5, "high": 1.5}}, "density=1.5 is out of range"),
        ({"method": ["ties"], "density": {"low": 0.5}}, "low: NUMBER, high: NUMBER"),
        ({"method": ["ties"], "density": {"low": 0.5, "high": 0.1}}, "low < high"),
        ({"method": ["ties"], "density": {"low": "1e-4", "high": "2e-1", "log": True}}, "low: NUMBER, high: NUMBER"),
        ({"method": ["ties"], "density": {"low": 0.1, "high": 0.5, "lg": True}}, "no key 'lg'; did you mean 'log'"),
        ({"method": ["ties"], "density": 0.3}, "neither a list of values nor a mapping"),
        ({"method": []}, "names no method"),
    ],
)
def test_spaces_that_are_refused(space, message):
    with pytest.raises(ConfigError, match=message):
        Space.read(space, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampler": "tp"}, "did you mean 'tpe'"),
        ({"objective": "front", "retention": {}}, "front needs search.retention"),
        ({"in_domain": {}}, "name at least one development set"),
        ({"in_domain": {"english": "x"}}, "'english' is the name of a set in domain and of one for retention"),
        ({"trials": 0}, "trials=0 is not above 0"),
        ({"trials": "many"}, "trials='many' is not a whole number"),
        ({"tolerance": -0.1}, "tolerance=-0.1 is not from 0"),
        ({"sampler": "exhaustive"}, "task_arithmetic.scale needs a list of values, or a step"),
        ({"experts": ["gone.nemo"]}, "gone.nemo"),
        ({"text": "wrods"}, "did you mean 'words'"),
        ({"decode": {"beem": 3}}, "beem"),
    ],
)
def test_settings_that_are_refused(job, values, message):
    with pytest.raises(NemoMergeError, match=message):
        changed(job, **values).check()
