"""``batch_norm=recalibrate`` as far as it goes without NeMo, and the other policies' reasons."""

from __future__ import annotations

import shlex

import pytest
import torch

pytest.importorskip("soundfile")
from nemo_merge import merge, merge_state_dicts, methods, open_checkpoint
from nemo_merge.cli.settings import compose
from nemo_merge.errors import AudioError, ConfigError, MergeError, PlanError
from nemo_merge.merging import Treatment, plan_merge, plan_table, recalibration
from nemo_merge.merging.ranks import Ranks
from tests.fixtures.audio import write_audio, write_manifest
from tests.fixtures.models import write_huggingface, write_nemo

MEAN, VARIANCE = (f"encoder.layers.0.conv.batch_norm.running_{kind}" for kind in ("mean", "var"))


@pytest.fixture
def manifest(tmp_path):
    return write_manifest(tmp_path / "inputs" / "m.json", write_audio(tmp_path / "inputs" / "audio"))


def planned(base, experts, **options):
    opened = open_checkpoint(base) if base else None
    plan = plan_merge(opened, [open_checkpoint(path) for path in experts], methods.get("soup"), **options)
    return plan, {row.name: row for row in plan.rows}


def test_the_plan_recalibrates_all_statistics_even_those_that_are_equal(nemo_family, manifest, monkeypatch):
    monkeypatch.setattr(recalibration, "find_spec", lambda name: object())
    base, _ = nemo_family
    plan, rows = planned(
        base, [base, base], batch_norm="recalibrate", audio={"path": manifest, "seconds": 11, "seed": 3}
    )
    assert {name for name, row in rows.items() if row.treatment is Treatment.RECALIBRATED} == {MEAN, VARIANCE}
    assert rows[MEAN].reason == "statistics, not weights: estimated from audio for the merged weights"
    record = plan.audio.record()
    assert (record["seconds"], record["seed"], record["kind"]) == (11, 3, "nemo manifest")
    assert "estimated from audio" in str(plan_table(plan).columns[-1]._cells)


def test_a_rule_that_leaves_statistics_at_the_base_wins(nemo_family, manifest, monkeypatch):
    monkeypatch.setattr(recalibration, "find_spec", lambda name: object())
    base, experts = nemo_family
    rules = [{"match": "running_", "method": "base"}]
    _, rows = planned(base, experts, batch_norm="recalibrate", audio=manifest, rules=rules)
    assert rows[MEAN].treatment is Treatment.COPY


@pytest.mark.parametrize(
    ("policy", "treatments", "reason"),
    [
        ("average", ("average", "average"), "arithmetic could make a variance negative"),
        ("pooled", ("average", "pooled"), "of the pooled data"),
        ("base", ("copy", "copy"), "batch_norm=base: the statistics that the base was trained with"),
    ],
)
def test_every_policy_gives_its_reason(nemo_family, policy, treatments, reason):
    _, rows = planned(*nemo_family, batch_norm=policy)
    assert (rows[MEAN].treatment, rows[VARIANCE].treatment) == treatments
    assert reason in rows[VARIANCE].reason


def test_pooled_variances_widen_where_only_means_differ(family):
    base, (one, two, _) = family
    experts = [{**expert, VARIANCE: base[VARIANCE]} for expert in (one, two)]
    merged = merge_state_dicts(base, experts, "soup", batch_norm="pooled")
    spread = torch.stack([expert[MEAN] for expert in experts]).var(0, correction=0)
    torch.testing.assert_close(merged[VARIANCE], base[VARIANCE] + spread)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_norm": "recalibrate"}, ConfigError, "estimates statistics from audio; pass audio="),
        ({"audio": "x.json"}, ConfigError, "audio is used by batch_norm=recalibrate only, not by batch_norm=average"),
        ({"batch_norm": "recalibrate", "audio": "x.json"}, AudioError, "x.json: no such file or folder"),
        ({"batch_norm": "recalibrate", "audio": {"seconds": 60}}, ConfigError, "audio: says no path"),
        ({"batch_norm": "recalibrate", "audio": {"path": "x", "second": 9}}, ConfigError, "did you mean 'seconds'"),
        ({"batch_norm": "recalibrate", "audio": {"path": "x", "seed": 0.5}}, ConfigError, "seed=0.5 is not a whole"),
        (
            {"batch_norm": "recalibrate", "ranks": Ranks(0, 2)},
            ConfigError,
            "works in one process; merge without torchrun",
        ),
        ({"batch_norm": "recalibrated"}, ConfigError, "did you mean 'recalibrate'"),
    ],
)
def test_options_are_checked_before_any_tensor_is_read(nemo_family, tmp_path, monkeypatch, options, error, message):
    def fail(*_):
        raise AssertionError("tensors were read")

    monkeypatch.setattr("nemo_merge.merging.plan.scan_tensor", fail)
    base, experts = nemo_family
    with pytest.raises(error, match=message):
        merge(base, experts, "soup", output=tmp_path / "m.nemo", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["inputs"]


def test_what_cannot_be_recalibrated(family, tmp_path, manifest, monkeypatch):
    base, experts = family
    options = {"batch_norm": "recalibrate", "audio": manifest}
    folder = write_huggingface(tmp_path / "hf", base)
    with pytest.raises(PlanError, match=r"needs \.nemo files, not 'huggingface'; use batch_norm=average"):
        planned(folder, [folder, folder], **options)
    plain = {name: tensor for name, tensor in base.items() if "running_" not in name}
    path = write_nemo(tmp_path / "plain.nemo", plain)
    with pytest.raises(PlanError, match=r"plain\.nemo: has no batch-normalisation statistics"):
        planned(path, [path, path], **options)
    with pytest.raises(ConfigError, match=r"needs \.nemo files"):
        merge_state_dicts(base, experts, "soup", batch_norm="recalibrate")
    monkeypatch.setattr(recalibration, "find_spec", lambda name: None)
    with pytest.raises(PlanError, match=r"needs NeMo, which is not installed; pip install 'nemo-merge\[nemo\]'"):
        planned(path, [path, path], **options)


def test_statistics_of_the_base_need_a_base(nemo_family):
    with pytest.raises(PlanError, match="but no base is given"):
        planned(None, nemo_family[1], batch_norm="base")


@pytest.fixture
def estimated(monkeypatch):
    """Stands for the process with NeMo: means of 0, variances of 2; notes the job."""
    from safetensors.torch import save_file

    from nemo_merge.training.jobs import read_job

    jobs = []

    def run(file):
        job = read_job(file)
        jobs.append(job)
        for name, path in job.models.items():
            with open_checkpoint(path) as merged:
                shape = merged.specs[MEAN].shape
            save_file({MEAN: torch.zeros(shape), VARIANCE: torch.full(shape, 2.0)}, f"{job.output}/{name}.safetensors")

    monkeypatch.setattr(recalibration, "find_spec", lambda name: object())
    monkeypatch.setattr(recalibration, "_run", run)
    return jobs


def test_the_output_has_the_new_statistics_and_all_other_tensors_of_the_merge(
    nemo_family, tmp_path, manifest, estimated
):
    base, experts = nemo_family
    merge(base, experts, "ties", output=tmp_path / "plain.nemo")
    report = merge(base, experts, "ties", output=tmp_path / "m.nemo", batch_norm="recalibrate", audio=str(manifest))
    with open_checkpoint(tmp_path / "m.nemo") as merged, open_checkpoint(tmp_path / "plain.nemo") as plain:
        assert list(merged) == list(plain)
        for name in merged:
            expected = {MEAN: torch.zeros(12), VARIANCE: torch.full((12,), 2.0)}.get(name, plain[name])
            assert torch.equal(merged[name], expected), name
        record = merged.metadata.provenance
    assert sorted(estimated[0].names) == [MEAN, VARIANCE]
    assert record["audio"]["path"] == str(manifest)
    assert record["audio"]["pieces"] == 12
    settings, _ = compose(shlex.split(record["command"])[2:])
    assert settings.audio == {"path": str(manifest), "seconds": 600.0, "seed": 0}
    assert report.tensors["recalibrated"] == {"batch-norm mean": 1, "batch-norm variance": 1}
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_sweep_estimates_all_its_models_in_one_process(nemo_family, tmp_path, manifest, estimated):
    from nemo_merge import sweep

    base, experts = nemo_family
    options = {"batch_norm": "recalibrate", "audio": manifest}
    reports = sweep(base, experts, "soup", grid={"scale": [0.5, 1.0]}, output=tmp_path / "s", **options)
    assert len(estimated) == 1
    assert len(estimated[0].models) == len(reports) == 2
    assert all(open_checkpoint(report.output)[VARIANCE].eq(2).all() for report in reports)


def test_a_process_that_fails_leaves_nothing(nemo_family, tmp_path, manifest, monkeypatch):
    """The process is real here: NeMo refuses the small state dict of the fixture, or is not there at all."""
    base, experts = nemo_family
    monkeypatch.setattr(recalibration, "find_spec", lambda name: object())
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(MergeError, match="batch_norm=recalibrate: the process ended with exit code 1"):
        merge(base, experts, "soup", output=tmp_path / "m.nemo", batch_norm="recalibrate", audio=str(manifest))
    assert [path.name for path in tmp_path.iterdir()] == ["inputs"]


def test_after_an_interrupted_estimate_the_same_merge_works(nemo_family, tmp_path, manifest, estimated, monkeypatch):
    base, experts = nemo_family
    options = {"output": tmp_path / "m.nemo", "batch_norm": "recalibrate", "audio": str(manifest)}

    def interrupt(file):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recalibration, "_run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            merge(base, experts, "soup", **options)
    (kept,) = (path for path in tmp_path.iterdir() if path.name.startswith(".m.nemo."))
    assert (kept / "0.nemo").is_file()
    assert not (tmp_path / "m.nemo").exists()
    merge(base, experts, "soup", **options)
    assert sorted(path.name for path in tmp_path.iterdir() if "m.nemo" in path.name) == sorted(
        ["m.nemo", "m.nemo.README.md", "m.nemo.merge.yaml"]
    )
