"""Files of ``torch.save``: where training programs keep the state dict, and what a merged file keeps of the rest."""

from __future__ import annotations

import argparse
from collections import OrderedDict

import pytest
import torch

from nemo_merge import merge, merge_state_dicts, open_checkpoint
from nemo_merge.errors import CheckpointError
from tests.fixtures.files import optimizer_state, write_espnet, write_icefall, write_torch
from tests.fixtures.models import CONFIG, family, same, state_dict


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", "module", "net"])
def test_the_wrapping_is_kept(tmp_path, key):
    base, experts = family()
    content = {"epoch": 7, key: base, "optimizer": optimizer_state(base), "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "b.pt")
    assert open_checkpoint(tmp_path / "b.pt").metadata.config == {"lr": 0.1}
    merge(tmp_path / "b.pt", [write_torch(tmp_path / "e.pt", experts[0])], "soup", output=tmp_path / "m.pt")
    merged = torch.load(tmp_path / "m.pt", weights_only=False)
    assert list(merged) == ["epoch", key, "args", "nemo_merge"]
    assert merged["args"] == argparse.Namespace(lr=0.1)
    assert same(dict(merged[key]), merge_state_dicts(base, experts[:1], "soup"))


@pytest.mark.parametrize(
    ("write", "kept"),
    [(write_icefall, {"model", "params", "best_train_loss", "batch_idx_train"}), (write_espnet, {"model"})],
)
def test_what_belongs_to_the_training_is_left_out(tmp_path, write, kept):
    base, experts = family()
    path, expert = write(tmp_path / "b.pt", base), write(tmp_path / "e.pt", experts[0])
    merge(path, [expert], "ties", output=tmp_path / "m.pt")
    merged = torch.load(tmp_path / "m.pt", weights_only=False)
    assert set(merged) == {*kept, "nemo_merge"}
    assert type(merged["model"]) is OrderedDict
    if "params" in kept:
        assert merged["params"] == torch.load(path, weights_only=False)["params"]


def test_nested_state_dicts_keep_their_nesting(tmp_path):
    content = {"model": {"encoder": {"w": torch.zeros(2, 2)}, "decoder": {"w": torch.ones(3)}}}
    expert = {"encoder.w": torch.ones(2, 2), "decoder.w": torch.zeros(3)}
    torch.save(content, tmp_path / "b.pt")
    assert set(open_checkpoint(tmp_path / "b.pt")) == {"encoder.w", "decoder.w"}
    merge(tmp_path / "b.pt", [write_torch(tmp_path / "e.pt", expert)], "soup", output=tmp_path / "m.pt")
    merged = torch.load(tmp_path / "m.pt", weights_only=True)["model"]
    assert merged["encoder"]["w"].tolist() == [[1, 1], [1, 1]]
    assert merged["decoder"]["w"].tolist() == [0, 0, 0]


def test_extra_states_of_modules_are_carried_over(tmp_path):
    content = {"w": torch.zeros(2), "layer._extra_state": {"scale": 3}}
    torch.save(content, tmp_path / "b.pt")
    assert list(open_checkpoint(tmp_path / "b.pt")) == ["w"]
    merge(tmp_path / "b.pt", [write_torch(tmp_path / "e.pt", {"w": torch.ones(2)})], "soup", output=tmp_path / "m.pt")
    assert torch.load(tmp_path / "m.pt")["layer._extra_state"] == {"scale": 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds a list of 1 instead of a state dict"),
        (torch.ones(2), "holds a tensor instead of a state dict"),
        (
            torch.nn.Linear(2, 2),
            r"holds torch\.nn\.modules\.linear\.Linear instead of a state dict; load it with the program",
        ),
        ({}, "is empty"),
        (
            {"epoch": 3, "weights": {"w": torch.ones(1)}},
            r"no state dict found.* it holds 'epoch' \(3\), 'weights' \(a dictionary of 1\)",
        ),
        ({"model": torch.nn.Linear(2, 2), "epoch": 3}, r"'model' \(torch\.nn\.modules\.linear\.Linear\)"),
        (
            {"model": {"a": torch.ones(1), "b": torch.ones(1), "c": 3.5}},
            "entry 'c' of its state dict is 3.5, not a tensor",
        ),
        (
            {"model": {"a": torch.ones(1)}, "criterion": {"b": torch.ones(1)}},
            r"several state dicts \(model, criterion\)",
        ),
        ({"model": {"a": torch.ones(1)}, "net": {"b": torch.ones(1)}}, r"several state dicts \(model, net\)"),
        ({"model": {1: torch.ones(1)}}, "no state dict found"),
        (
            {"model": {"a": torch.ones(2).to_sparse(), "b": torch.ones(1), "c": torch.ones(1)}},
            "entry 'a' .* is torch._utils._rebuild_sparse_tensor",
        ),
    ],
)
def test_files_without_one_state_dict(tmp_path, content, message):
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=rf"m\.pt: .*{message}"):
        open_checkpoint(tmp_path / "m.pt")


def test_configurations_are_found_beside_the_model(tmp_path):
    torch.save({"model": state_dict(), "cfg": CONFIG}, tmp_path / "m.pt")
    metadata = open_checkpoint(tmp_path / "m.pt").metadata
    assert metadata.model_class == CONFIG["target"]
    assert list(metadata.tokenizers) == ["labels"]


def test_a_merged_file_does_not_depend_on_the_number_of_threads(tmp_path):
    base, experts = family()
    path, expert = write_icefall(tmp_path / "b.pt", base), write_icefall(tmp_path / "e.pt", experts[0])
    merge(path, [expert], "ties", output=tmp_path / "1.pt", workers=1)
    merge(path, [expert], "ties", output=tmp_path / "4.pt", workers=4)
    assert (tmp_path / "1.pt").read_bytes() == (tmp_path / "4.pt").read_bytes()
