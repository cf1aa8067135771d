"""A merge shared by the processes of torchrun gives the bytes of a merge by one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_merge import merge
from nemo_merge.errors import MergeError
from nemo_merge.merging.distributed import ShardWriter, gather, share_of
from nemo_merge.merging.plan import plan_merge
from nemo_merge.merging.ranks import OtherRankError, Ranks
from nemo_merge.methods import get
from tests.fixtures.models import family, write_huggingface, write_nemo


def torchrun(count: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", "nemo_merge", *arguments], capture_output=True, text=True, timeout=120, env=environment
    )


def files(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {path.name: path.read_bytes()}
    return {item.name: item.read_bytes() for item in path.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nemo", "huggingface"])
@pytest.mark.parametrize(
    ("method", "settings"),
    [("tsvm", ["dtype=bfloat16"]), ("ties", ["method.scope=model", "then=[lines]"])],
    ids=["tsvm", "ties"],
)
def test_the_same_bytes_as_by_one_process(tmp_path, kind, method, settings):
    write = write_nemo if kind == "nemo" else lambda path, tensors: write_huggingface(path, tensors, shards=3)
    base, experts = family()
    paths = [write(tmp_path / f"{i}.{kind}", model) for i, model in enumerate((base, *experts))]
    arguments = [f"method={method}", f"base={paths[0]}", f"experts=[{','.join(map(str, paths[1:]))}]", *settings]
    outputs = []
    for count in (1, 3):
        folder = tmp_path / str(count)
        folder.mkdir()
        done = torchrun(count, "merge", *arguments, f"output={folder / 'merged'}")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("merged by") == 1
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        outputs.append(files(folder / "merged"))
    assert outputs[0] == outputs[1]


@pytest.mark.slow
def test_one_rank_says_what_is_wrong(tmp_path):
    base, experts = family()
    experts[1]["decoder.decoder_layers.0.bias"][0] = float("nan")
    paths = [write_nemo(tmp_path / f"{i}.nemo", model) for i, model in enumerate((base, *experts))]
    done = torchrun(
        2, "merge", "method=soup", f"base={paths[0]}", f"experts=[{paths[1]},{paths[2]}]", f"output={tmp_path / 'm'}"
    )
    assert done.returncode != 0
    assert done.stderr.count("values that are NaN or infinite") == 1
    assert not [path for path in tmp_path.iterdir() if path.name not in {path.name for path in paths}]


def test_every_tensor_has_one_rank_and_all_have_about_the_same_to_do(nemo_family):
    from nemo_merge import open_checkpoint

    base, *experts = (open_checkpoint(path) for path in (nemo_family[0], *nemo_family[1]))
    plan = plan_merge(base, experts, get("tsvm"))
    shares = [share_of(plan, Ranks(rank, 3)) for rank in range(3)]
    assert sorted(name for share in shares for name in share) == sorted(row.name for row in plan.rows)
    costs = [Ranks(rank, 3).mine([5, 4, 3, 3, 3], float) for rank in range(3)]
    assert sorted(map(sum, costs)) == [5, 6, 7]


def test_shards_that_rank_0_does_not_see(tmp_path, nemo_family):
    ranks = Ranks(0, 2)
    report = merge(nemo_family[0], nemo_family[1], "soup", output=tmp_path / "m.nemo")
    with (
        ShardWriter(ranks, tmp_path / "n.nemo", {}, report.provenance),
        pytest.raises(MergeError, match=r"the shard of rank 1 is not in .* shared folder"),
    ):
        gather(tmp_path / "n.nemo", ranks, report.provenance, None)


def test_errors_of_other_ranks_stop_this_one(monkeypatch):
    monkeypatch.setattr(Ranks, "all", lambda self, value: [True, value])
    with pytest.raises(OtherRankError, match="rank 0 of 2 failed"), Ranks(1, 2).together():
        pass
    monkeypatch.setattr(Ranks, "all", lambda self, value: [False, value])
    with pytest.raises(ValueError, match="mine"), Ranks(1, 2).together():
        raise ValueError("mine")
