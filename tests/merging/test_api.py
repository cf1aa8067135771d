from __future__ import annotations

import hashlib
import logging

import pytest
import torch

import nemo_merge
from nemo_merge import merge, merge_state_dicts, methods, open_checkpoint
from nemo_merge.errors import CheckpointError, ConfigError, OutputError, PlanError
from tests.fixtures.models import family, same, write_huggingface, write_nemo


def test_a_file_holds_what_the_merge_in_memory_gives(nemo_family, tmp_path):
    base, experts = nemo_family
    report = merge(base, experts, "boosted_tsvm", output=tmp_path / "m.nemo", beta=0.2, scale=0.9, weights=[1, 2, 1])
    expected = merge_state_dicts(*family(), "boosted_tsvm", [1, 2, 1], 0.9, beta=0.2)
    assert same(dict(open_checkpoint(tmp_path / "m.nemo")), expected)
    assert report.output == tmp_path / "m.nemo"
    assert "boosted_tsvm" in str(report)


def test_the_record_says_what_was_done(nemo_family, tmp_path):
    base, experts = nemo_family
    report = merge(base, experts, "ties", output=tmp_path / "m.nemo", density=0.4, dtype="float32", batch_norm="pooled")
    record = open_checkpoint(tmp_path / "m.nemo").metadata.provenance
    assert record == report.provenance
    assert record["nemo_merge"] == nemo_merge.__version__
    assert record["method"] == {
        "name": "ties",
        "scale": 1.0,
        "weights": [1.0, 1.0, 1.0],
        "density": 0.4,
        "scope": "tensor",
    }
    assert (record["dtype"], record["batch_norm"]) == ("float32", "pooled")
    for path, entry in zip([base, *experts], [record["base"], *record["experts"]], strict=True):
        assert entry["path"] == str(path)
        assert entry["sha256"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    assert sum(count for roles in record["tensors"].values() for count in roles.values()) == len(family()[0])


def test_a_method_object_and_open_checkpoints_will_do(nemo_family, tmp_path):
    base, experts = nemo_family
    with open_checkpoint(base) as opened:
        merge(opened, [open_checkpoint(path) for path in experts], methods.get("soup"), output=tmp_path / "m.nemo")
    assert same(dict(open_checkpoint(tmp_path / "m.nemo")), merge_state_dicts(*family(), "soup"))
    with pytest.raises(ConfigError, match="cannot be given beside a finished method"):
        merge(base, experts, methods.get("soup"), output=tmp_path / "n.nemo", scale=2)


def test_formats_mix_as_long_as_tensors_agree(tmp_path):
    base, experts = family(2)
    inputs = [write_nemo(tmp_path / "a.nemo", experts[0], packed=True), write_huggingface(tmp_path / "b", experts[1])]
    # A NeMo model and a Hugging Face folder name their classes differently, which the plan refuses to overlook.
    with pytest.raises(PlanError, match="only models of one class"):
        merge(write_nemo(tmp_path / "base.nemo", base), inputs, "soup", output=tmp_path / "m.nemo")
    (inputs[1] / "config.json").unlink()
    merge(tmp_path / "base.nemo", inputs, "soup", output=tmp_path / "m.nemo")
    assert same(dict(open_checkpoint(tmp_path / "m.nemo")), merge_state_dicts(base, experts, "soup"))


def test_outputs_are_never_replaced_unasked(nemo_family, tmp_path):
    base, experts = nemo_family
    output = tmp_path / "m.nemo"
    output.write_text("precious")
    with pytest.raises(OutputError, match=r"m\.nemo: exists already; pass overwrite=true"):
        merge(base, experts, "soup", output=output)
    assert output.read_text() == "precious"
    merge(base, experts, "soup", output=output, overwrite=True)
    assert same(dict(open_checkpoint(output)), merge_state_dicts(*family(), "soup"))


def test_an_input_is_never_the_output(nemo_family, tmp_path):
    base, experts = nemo_family
    (tmp_path / "link.nemo").symlink_to(base)
    content = base.read_bytes()
    for output in (base, experts[0], tmp_path / "link.nemo"):
        with pytest.raises(OutputError, match="is also an input"):
            merge(base, experts, "soup", output=output, overwrite=True)
    assert base.read_bytes() == content


def test_what_does_not_exist(nemo_family, tmp_path):
    base, experts = nemo_family
    with pytest.raises(CheckpointError, match=r"gone\.nemo: no such file"):
        merge(base, [tmp_path / "gone.nemo"], "soup", output=tmp_path / "m.nemo")
    with pytest.raises(OutputError, match="create it first"):
        merge(base, experts, "soup", output=tmp_path / "no" / "m.nemo")
    with pytest.raises(ConfigError, match="must be a list"):
        merge(base, str(experts[0]), "soup", output=tmp_path / "m.nemo")


def test_nothing_is_left_after_a_failed_plan(nemo_family, tmp_path):
    base, experts = nemo_family
    broken, *_ = family()[1]
    broken["decoder.decoder_layers.0.bias"][0] = float("nan")
    write_nemo(experts[0], broken)
    with pytest.raises(PlanError, match="NaN"):
        merge(base, experts, "soup", output=tmp_path / "m.nemo")
    assert [path.name for path in tmp_path.iterdir()] == ["inputs"]


def test_warnings_are_logged(caplog):
    base, _ = family()
    with caplog.at_level(logging.WARNING, "nemo_merge"):
        merge_state_dicts(base, [base], "soup")
    assert "no expert differs" in caplog.text


def test_state_dicts_of_modules(tmp_path):
    base = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6))
    experts = [torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6)) for _ in range(2)]
    merged = merge_state_dicts(base.state_dict(), [expert.state_dict() for expert in experts], "tsvm")
    base.load_state_dict(merged)
    assert not merged["0.weight"].requires_grad
