"""Merges that stay in memory are those that are written."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import save_file

from nemo_merge import merge, methods, open_checkpoint
from nemo_merge.checkpoints import NemoCheckpoint
from nemo_merge.errors import CheckpointError, ConfigError, PlanError
from nemo_merge.merging.api import Options
from nemo_merge.merging.in_memory import InMemoryMerge


def planned(base, experts, name="ties", **options):
    return InMemoryMerge(base, experts, methods.get(name), Options(**options))


@pytest.mark.parametrize("name", ["ties", "soup", "boosted_tsvm"])
@pytest.mark.parametrize("dtype", [None, "float64"])
def test_the_same_as_in_a_file(nemo_family, tmp_path, name, dtype):
    base, experts = nemo_family
    merge(base, experts, name, output=tmp_path / "merged.nemo", dtype=dtype, batch_norm="pooled")
    with (
        planned(base, experts, name, dtype=dtype, batch_norm="pooled") as found,
        open_checkpoint(tmp_path / "merged.nemo") as written,
    ):
        weights = found.state_dict()
        assert set(weights) == set(written)
        for key, value in written.items():
            assert weights[key].dtype == value.dtype
            assert torch.equal(weights[key], value), key
        assert found.record == written.metadata.provenance
        shared = {
            alias: weights[alias].data_ptr() == weights[owner].data_ptr() for alias, owner in written.ties.items()
        }
        assert all(shared.values())


def test_nothing_is_written(nemo_family, tmp_path, monkeypatch):
    base, experts = nemo_family
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setenv("TMPDIR", "/nowhere")
    with planned(base, experts) as found:
        found.state_dict()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_without_weights(nemo_family, tmp_path):
    base, experts = nemo_family
    with planned(base, experts) as found:
        found.write_without_weights(tmp_path / "hollow.nemo")
    with NemoCheckpoint(tmp_path / "hollow.nemo") as hollow, open_checkpoint(base) as like:
        assert not list(hollow)
        assert hollow.metadata.provenance == found.record
        assert {
            key: value for key, value in hollow.metadata.config.items() if key != "nemo_merge"
        } == like.metadata.config
        assert hollow.metadata.tokenizers == like.metadata.tokenizers


def test_other_formats_have_weights_but_no_file(tmp_path):
    for seed in range(2):
        save_file({"w": torch.randn(4, 4)}, tmp_path / f"{seed}.safetensors")
    with planned(tmp_path / "0.safetensors", [tmp_path / "1.safetensors"], "soup") as found:
        assert found.state_dict()["w"].shape == (4, 4)
        with pytest.raises(CheckpointError, match=r"NeMo restores \.nemo files"):
            found.write_without_weights(tmp_path / "hollow.nemo")
    assert not list(tmp_path.glob("*hollow*"))


def test_problems_are_found_before_anything_is_computed(nemo_family):
    base, experts = nemo_family
    with pytest.raises(ConfigError, match="emr leaves a package"):
        planned(base, experts, "emr")
    with pytest.raises(PlanError, match="needs a base"):
        planned(None, experts)
    with pytest.raises(CheckpointError, match="nowhere"):
        planned(base, [base.parent / "nowhere.nemo"])


def test_an_input_that_changes_meanwhile(nemo_family):
    base, experts = nemo_family
    with planned(base, experts) as found:
        os.utime(experts[0], ns=(1, 1))
        with pytest.raises(CheckpointError, match="changed while it was read"):
            found.state_dict()
