from __future__ import annotations

import pytest

from nemo_merge import linalg, merge, methods, open_checkpoint, sweep
from nemo_merge.errors import ConfigError, OutputError
from tests.fixtures.models import same

GRIDS = {
    "boosted_tsvm": {"beta": [0.1, 0.3], "scale": [0.0, 0.5, 1.0]},
    "ties": {"density": [0.2, 0.5], "scale": [0.5, 1.0]},
    "cart": {"scale": [0.0, 1.5]},
    "karcher": {"scale": [0.5, 1.0]},
    "pcb": {"ratio": [0.1], "scope": ["tensor", "model"]},
    "task_arithmetic": {"weights": [[1, 1, 1], [2, 1, 0]]},
}


@pytest.mark.parametrize("method", GRIDS)
def test_every_result_has_the_values_of_a_merge_by_itself(method, nemo_family, tmp_path):
    base, experts = nemo_family
    reports = sweep(base, experts, method, grid=GRIDS[method], output=tmp_path / "sweep", workers=2)
    assert len(reports) == len(list((tmp_path / "sweep").glob("*.nemo")))
    for report in reports:
        own = report.provenance["method"]
        parameters = {key: own[key] for key in GRIDS[method]}
        alone = merge(base, experts, method, output=tmp_path / "alone.nemo", overwrite=True, **parameters)
        assert alone.provenance == report.provenance
        assert same(dict(open_checkpoint(report.output)), dict(open_checkpoint(tmp_path / "alone.nemo")))
        assert (tmp_path / "alone.nemo").read_bytes() == report.output.read_bytes()


def test_factors_are_computed_once(nemo_family, tmp_path, monkeypatch):
    base, experts = nemo_family
    calls = []
    original = linalg.thin_svd
    monkeypatch.setattr("nemo_merge.methods.tsvm.thin_svd", lambda *args: calls.append(1) or original(*args))
    merge(base, experts, "boosted_tsvm", output=tmp_path / "one.nemo")
    once = len(calls)
    grid = {"beta": [0.1, 0.2, 0.3], "scale": [0.5, 1.0], "energy_power": [1, 2]}
    assert len(sweep(base, experts, "boosted_tsvm", grid=grid, output=tmp_path / "sweep")) == 12
    assert len(calls) == 2 * once
    sweep(base, experts, "boosted_tsvm", grid={"rank_fraction": [0.2, 0.5]}, output=tmp_path / "ranks")
    assert len(calls) == 4 * once


def test_names_say_the_values(nemo_family, tmp_path):
    base, experts = nemo_family
    reports = sweep(
        base, experts, "ties", grid={"density": [0.2], "weights": [[1, 2, 3]]}, output=tmp_path / "s", scale=0.5
    )
    assert [report.output.name for report in reports] == ["ties-density=0.2,weights=1+2+3.nemo"]
    assert reports[0].provenance["method"]["scale"] == 0.5


@pytest.mark.parametrize(
    ("grid", "parameters", "message"),
    [
        ({}, {}, "needs at least one parameter"),
        ({"density": []}, {}, "no values for density"),
        ({"density": [0.1]}, {"density": 0.2}, "in the grid and given beside it"),
        ({"densty": [0.1]}, {}, "did you mean 'density'"),
        ({"density": [0.1, 7]}, {}, "out of range"),
    ],
)
def test_wrong_grids_are_refused_before_anything_is_written(grid, parameters, message, nemo_family, tmp_path):
    base, experts = nemo_family
    with pytest.raises(ConfigError, match=message):
        sweep(base, experts, "ties", grid=grid, output=tmp_path / "sweep", **parameters)
    assert not (tmp_path / "sweep").exists()


def test_an_output_that_exists_is_kept(nemo_family, tmp_path):
    base, experts = nemo_family
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "soup-scale=0.5.nemo").write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        sweep(base, experts, "soup", grid={"scale": [0.2, 0.5]}, output=tmp_path / "sweep")
    assert [path.read_text() for path in (tmp_path / "sweep").iterdir()] == ["precious"]


def test_the_late_parameters_of_every_method_exist():
    for name in methods.names():
        cls = methods.method_class(name)
        assert set(cls.late) <= {item.name for item in methods.parameters(cls)}
