"""Distributed checkpoints: pieces of several processes, the layouts of trainings, and damage."""

from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from nemo_merge import open_checkpoint
from nemo_merge.checkpoints.dcp import Piece, _fills
from nemo_merge.errors import CheckpointError
from tests.fixtures.files import write_dcp
from tests.fixtures.models import same, state_dict


def save(path: Path, state: dict) -> Path:
    dcp.save(state, checkpoint_id=path, no_dist=True)
    return path


def change(path: Path, edit) -> None:
    """Edits ``.metadata`` as its own library reads it."""
    file = path / ".metadata"
    metadata = pickle.loads(file.read_bytes())  # noqa: S301 (written by this test)
    edit(metadata)
    file.write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize("key", ["state_dict", "model", "module", None])
def test_the_model_is_found_under_the_keys_of_trainings(tmp_path, key):
    tensors = state_dict()
    path = save(tmp_path / "m", {key: tensors, "optim": {"exp_avg": torch.ones(3)}, "epoch": 3} if key else tensors)
    assert same(dict(open_checkpoint(path)), tensors)


def test_nested_models_and_models_that_are_not_found(tmp_path):
    path = save(tmp_path / "nested", {"model": {"encoder": {"w": torch.ones(2)}, "b": torch.zeros(1)}})
    assert set(open_checkpoint(path)) == {"encoder.w", "b"}
    path = save(tmp_path / "other", {"generator": {"w": torch.ones(2)}, "critic": {"w": torch.ones(2)}})
    with pytest.raises(
        CheckpointError, match=r"other: no model found under .*; it holds critic, generator\. convert it"
    ):
        open_checkpoint(path)


def test_a_piece_is_mapped_and_read_when_asked_for(tmp_path):
    path = write_dcp(tmp_path / "m", {"w": torch.zeros(1 << 20), "b": torch.ones(3)})
    with open_checkpoint(path) as checkpoint:
        assert [file.name for file in checkpoint.files] == [".metadata", "__0_0.distcp"]
        assert checkpoint._maps == {}
        assert torch.equal(checkpoint["b"], torch.ones(3))


def _chunk(metadata: Metadata, **changes) -> None:
    chunk = metadata.state_dict_metadata["w"].chunks[0]
    for name, value in changes.items():
        setattr(chunk, name, torch.Size(value))


def _storage(metadata: Metadata, **changes) -> None:
    for info in metadata.storage_data.values():
        for name, value in changes.items():
            object.__setattr__(info, name, value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: _chunk(m, sizes=(1,)), "the pieces of tensor 'w' do not make up its shape"),
        (lambda m: _chunk(m, offsets=(1,)), "tensor 'w' is not described completely"),
        (lambda m: m.state_dict_metadata["w"].chunks.clear(), "do not make up its shape"),
        (lambda m: _storage(m, relative_path="../outside"), r"refused, tensor 'w' is said to be in '\.\./outside'"),
        (lambda m: _storage(m, relative_path="/etc/passwd"), "outside the folder"),
        (lambda m: _storage(m, relative_path="gone.distcp"), r"gone\.distcp: missing"),
        (lambda m: _storage(m, offset=10**9), "damaged or cut short"),
        (lambda m: _storage(m, offset=-1), "do not make up"),
        (lambda m: _storage(m, length="x"), "do not make up"),
        (lambda m: _storage(m, transform_descriptors=["zstd"]), "is compressed; convert it"),
        (lambda m: m.storage_data.clear(), "not described completely"),
        (lambda m: m.state_dict_metadata.update(w=BytesStorageMetadata()), "no model found"),
    ],
)
def test_descriptions_that_cannot_be_true(tmp_path, edit, message):
    path = save(tmp_path / "m", {"w": torch.ones(4)})
    change(path, edit)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def test_a_piece_that_is_not_what_the_metadata_says(tmp_path):
    path = save(tmp_path / "m", {"w": torch.ones(4)})

    def wrong_type(metadata: Metadata) -> None:
        metadata.state_dict_metadata["w"].properties = TensorProperties(dtype=torch.int32)

    change(path, wrong_type)
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp: a piece of tensor 'w' is not what \.metadata says"):
        open_checkpoint(path)["w"]
    (path / ".metadata").write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(CheckpointError, match="not the metadata of a distributed checkpoint"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("shape", "pieces", "expected"),
    [
        ((4, 2), [((0, 0), (2, 2)), ((2, 0), (2, 2))], True),
        ((4, 2), [((2, 0), (2, 2)), ((0, 0), (2, 2))], True),
        ((4, 2), [((0, 0), (4, 1)), ((0, 1), (4, 1))], True),
        ((4, 2), [((0, 0), (2, 2)), ((1, 0), (2, 2))], False),
        ((4, 2), [((0, 0), (4, 1)), ((0, 0), (4, 1))], False),
        ((4, 2), [((0, 0), (2, 2))], False),
        ((4, 2), [((3, 0), (4, 2))], False),
        ((4,), [((0, 0), (2, 2))], False),
        ((), [((), ())], True),
        ((), [((), ()), ((), ())], False),
        ((0, 3), [((0, 0), (0, 3))], True),
        ((0, 3), [], True),
    ],
)
def test_pieces_must_fill_the_shape_exactly(shape, pieces, expected):
    assert _fills(shape, [Piece(offsets, sizes, "f", 0, 1) for offsets, sizes in pieces]) is expected


def _save_sharded(rank: int, path: str, port: int) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    tensors = _tensors()
    state = {
        "rows": distribute_tensor(tensors["rows"], mesh, [Shard(0)]),
        "columns": distribute_tensor(tensors["columns"], mesh, [Shard(1)]),
        "whole": tensors["whole"],
    }
    dcp.save({"model": state, "optimizer_0": {"lr": 0.1}}, checkpoint_id=path)
    dist.destroy_process_group()


def _tensors() -> dict[str, torch.Tensor]:
    return {
        "rows": torch.arange(15.0).view(5, 3),
        "columns": torch.arange(8.0).view(2, 4).bfloat16(),
        "whole": torch.tensor(7),
    }


@pytest.mark.slow
def test_tensors_of_two_processes_are_put_together(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_save_sharded, (str(tmp_path / "m"), port), 2)
    with open_checkpoint(tmp_path / "m") as checkpoint:
        assert len(checkpoint._pieces["rows"]) == len(checkpoint._pieces["columns"]) == 2
        assert same(dict(checkpoint), _tensors())
        assert len(checkpoint.files) == 3


def test_the_classes_of_the_metadata_are_those_of_the_library():
    """The reader knows them by name only."""
    chunk = ChunkStorageMetadata(torch.Size([0]), torch.Size([2]))
    stored = TensorStorageMetadata(TensorProperties(dtype=torch.float16), torch.Size([2]), [chunk])
    assert set(vars(stored)) == {"properties", "size", "chunks"}
    assert set(vars(chunk)) == {"offsets", "sizes"}
    assert {"fqn", "offset"} <= set(vars(MetadataIndex("w", torch.Size([0]))))
    assert {"state_dict_metadata", "planner_data", "storage_data"} <= set(vars(Metadata({})))
