"""What kinds of input, ways to run and outputs do together: every kind, resumed, shared among ranks, and repeated."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_merge import merge, open_checkpoint
from nemo_merge.merging import engine
from nemo_merge.merging.ranks import Ranks
from nemo_merge.merging.reproduce import reproduce
from tests.fixtures import vocabularies
from tests.fixtures.adapters import lora_folder
from tests.fixtures.files import write_as
from tests.fixtures.models import family, write_huggingface, write_nemo

LETTERS = [" ", "a", "b", "c"]


def low_rank(seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    name, rows, columns = "encoder.layers.0.feed_forward1.linear1", 24, 12
    return {name: (torch.randn(rows, 2, generator=generator), 0.1 * torch.randn(2, columns, generator=generator))}


def mixed(folder: Path) -> dict[str, Any]:
    base, experts = family()
    kinds = ["lightning", "safetensors", "dcp"]
    paths = [
        write_as(kind, folder, f"e{i}", expert) for i, (kind, expert) in enumerate(zip(kinds, experts, strict=True))
    ]
    return {"base": write_nemo(folder / "base.nemo", base), "experts": paths, "output": "m.nemo"}


def shards(folder: Path) -> dict[str, Any]:
    base, experts = family()
    paths = [write_huggingface(folder / f"{i}", model, shards=3) for i, model in enumerate((base, *experts))]
    return {"base": paths[0], "experts": paths[1:], "output": "m", "dtype": "bfloat16"}


def grown(folder: Path) -> dict[str, Any]:
    base = vocabularies.model(folder / "base.nemo", LETTERS)
    experts = [
        vocabularies.model(folder / f"e{i}.nemo", tokens, seed=i + 1)
        for i, tokens in enumerate([[*LETTERS, "d", "e"], ["e", *LETTERS]])
    ]
    return {"base": base, "experts": experts, "output": "m.nemo", "vocabulary": "union"}


def adapters(folder: Path) -> dict[str, Any]:
    base = write_nemo(folder / "base.nemo", family()[0])
    experts = [lora_folder(folder / f"{i}", low_rank(i)) for i in range(2)]
    return {"base": base, "experts": experts, "output": "m.nemo"}


def rules(folder: Path) -> dict[str, Any]:
    base, experts = family()
    paths = [write_nemo(folder / f"{i}.nemo", model) for i, model in enumerate((base, *experts))]
    settings = {"rules": [{"group": "head", "method": {"name": "ties", "scope": "model"}}], "then": ["lines"]}
    return {"base": paths[0], "experts": paths[1:], "output": "m.nemo", "batch_norm": "pooled", **settings}


KINDS = [mixed, shards, grown, adapters, rules]


def files(path: Path) -> dict[str, bytes]:
    paths = [path] if path.is_file() else [item for item in path.iterdir() if item.name != "README.md"]
    return {item.name: item.read_bytes() for item in paths}


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    """Ranks that are threads of this process."""

    values: list[Any] = field(default_factory=list)
    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=60))

    def all(self, value):
        self.values[self.rank] = value
        self.barrier.wait()
        found = list(self.values)
        self.barrier.wait()
        return found


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def settings(request, tmp_path):
    folder = tmp_path / "inputs"
    folder.mkdir()
    return {"method": "boosted_tsvm", "workers": 1, **request.param(folder)}


@pytest.fixture
def run(settings, tmp_path):
    """Merges into a folder of that name, and returns the output."""

    def run(name: str, **more: Any) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        output = tmp_path / name / settings["output"]
        merge(**{**settings, "output": output, **more})
        return output

    return run


def test_ranks_give_the_same_bytes(run, tmp_path):
    expected = files(run("one"))
    first = ThreadRanks(0, 2, [None, None])
    threads = [threading.Thread(target=run, args=("two",), kwargs={"ranks": replace(first, rank=i)}) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files(next(path for path in (tmp_path / "two").iterdir() if path.name in ("m", "m.nemo"))) == expected
    assert not [path for path in (tmp_path / "two").iterdir() if path.name.startswith(".")]


def test_an_interrupted_merge_goes_on(run, tmp_path, monkeypatch):
    expected = files(run("one"))
    original, done = engine._merge_tensor, []

    def interrupt(*arguments):
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(arguments[1])
        return original(*arguments)

    monkeypatch.setattr(engine, "_merge_tensor", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run("two")
    assert [path.name for path in (tmp_path / "two").iterdir() if not path.name.startswith(".")] == []
    written = []
    monkeypatch.setattr(engine, "_merge_tensor", original)
    rest = engine._merge_rest
    monkeypatch.setattr(engine, "_merge_rest", lambda *arguments: written.append(arguments[1]) or rest(*arguments))
    output = run("two")
    assert sorted(written) == sorted(done)
    assert files(output) == expected
    assert not [path for path in (tmp_path / "two").iterdir() if path.name.startswith(".")]


def test_it_can_be_repeated_and_written_as_safetensors(run, tmp_path):
    output = run("one")
    assert reproduce(output).same_bytes
    run("two", output=tmp_path / "two" / "m.safetensors")
    with open_checkpoint(output) as one, open_checkpoint(tmp_path / "two" / "m.safetensors") as two:
        assert set(two.specs) == set(one.specs) - set(one.ties)
        for name in two:
            assert torch.equal(one[name], two[name])
        # What grew is in a configuration, which a file of tensors does not have.
        assert two.metadata.provenance["method"] == one.metadata.provenance["method"]
