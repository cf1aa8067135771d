"""Expert packs: what they hold, that they are experts, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nemo_merge import merge, open_checkpoint, pack
from nemo_merge.checkpoints import PackCheckpoint
from nemo_merge.errors import CheckpointError, ConfigError, NemoMergeError, OutputError, PlanError
from nemo_merge.merging.inputs import open_inputs
from tests.fixtures.adapters import lora_folder
from tests.fixtures.models import family, fine_tuned, same, state_dict, write_nemo
from tests.fixtures.vocabularies import model

LINEAR, STATISTICS = "encoder.layers.0.feed_forward1.linear1.weight", "encoder.layers.0.conv.batch_norm.running_var"
OPTIONS = {
    "defaults": {},
    "rank": {"rank": 3, "keep": 0.1},
    "low rank alone": {"rank": 4, "keep": 0},
    "sparse alone": {"rank": 0, "keep": 0.2, "dtype": "float16"},
    "energy": {"energy": 0.5, "keep": 0.05, "dtype": "float32"},
    "few entries": {"rank_fraction": 0.2, "keep": 0.03},
}


@pytest.fixture
def wide(tmp_path):
    """A base and an expert whose matrices are large enough to be packed, with their tensors."""
    base = state_dict(width=48)
    expert = fine_tuned(base, 1)
    paths = write_nemo(tmp_path / "base.nemo", base), write_nemo(tmp_path / "pt.nemo", expert)
    return *paths, base, expert


def read(base: Path, packed: Path) -> dict[str, torch.Tensor]:
    """The expert that base and pack make."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        _, (expert,) = open_inputs(base, [packed], stack)
        return {name: expert[name].clone() for name in expert}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_size_and_error_are_as_reported(options, wide, tmp_path):
    base, expert, start, end = wide
    report = pack(expert, base, tmp_path / "pt.pack.safetensors", **options)
    found = read(base, report.output)
    lost = total = 0.0
    for name in (name for name in end if end[name].is_floating_point()):
        lost += float((found[name].double() - end[name].double()).square().sum())
        total += float((end[name].double() - start[name].double()).square().sum())
    assert report.error == pytest.approx((lost / total) ** 0.5, rel=1e-3)
    assert 0 < report.error < 1
    assert report.size == report.output.stat().st_size < report.expert_size
    assert same({STATISTICS: found[STATISTICS]}, {STATISTICS: end[STATISTICS]})  # vectors and counters stay whole
    assert found["encoder.layers.0.conv.batch_norm.num_batches_tracked"] == 1020
    change = (found[LINEAR].double() - start[LINEAR].double()).float()
    if options.get("keep") == 0:
        assert int(torch.linalg.matrix_rank(change, rtol=1e-4)) == 4
    if options.get("rank") == 0:
        assert int((change != 0).sum()) == int(0.2 * change.numel())


def test_more_kept_is_less_lost(wide, tmp_path):
    base, expert, *_ = wide
    reports = [
        pack(expert, base, tmp_path / "pt.pack.safetensors", overwrite=True, keep=keep)
        for keep in (0, 0.01, 0.1, 0.3, 1)
    ]
    errors = [report.error for report in reports]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0
    assert "loses nothing" in str(reports[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_whole_pack_is_the_expert_to_the_bit(dtype, tmp_path):
    tensors = [
        {name: value.to(dtype) if value.is_floating_point() else value for name, value in some.items()}
        for some in (family()[0], *family()[1][:2])
    ]
    base, *experts = (write_nemo(tmp_path / f"{index}.nemo", some) for index, some in enumerate(tensors))
    packs = [pack(item, base, tmp_path / f"{item.stem}.pack.safetensors", keep=1).output for item in experts]
    assert same(read(base, packs[0]), tensors[1])
    merge(base, experts, "ties", output=tmp_path / "a.nemo")
    report = merge(base, packs, "ties", output=tmp_path / "b.nemo")
    with open_checkpoint(tmp_path / "a.nemo") as a, open_checkpoint(tmp_path / "b.nemo") as b:
        assert same(dict(a), dict(b))
    entry = report.provenance["experts"][0]
    assert entry["format"] == "pack"
    assert entry["pack"]["expert"]["path"] == str(experts[0])
    assert entry["pack"]["error"] == 0


def test_low_rank_alone_is_merged_by_its_factors(wide, tmp_path):
    base, expert, start, _ = wide
    report = pack(expert, base, tmp_path / "pt.pack.safetensors", rank=2, keep=0, dtype="float32")
    with open_checkpoint(base) as opened, open_checkpoint(report.output) as packed:
        bound = packed.bind(opened)
        change = bound.low_rank(LINEAR)
        assert change.rank == 2
        assert torch.allclose(bound[LINEAR].double(), start[LINEAR].double() + change.rows(), atol=1e-7)
        assert not bound.low_rank("preprocessor.featurizer.window")
        assert bound.low_rank(STATISTICS) is None


@pytest.mark.parametrize("tokens", ["abcx", ["<unk>", "a", "b", "z"]], ids=["characters", "pieces"])
def test_new_tokens_survive(tokens, tmp_path):
    pytest.importorskip("sentencepiece")
    start = tokens[:3]
    base, expert = model(tmp_path / "base.nemo", start), model(tmp_path / "es.nemo", tokens, 1)
    packed = pack(expert, base, tmp_path / "es.pack.safetensors", keep=1).output
    for name, source in (("a", expert), ("b", packed)):
        merge(base, [source], "soup", output=tmp_path / f"{name}.nemo", vocabulary="union")
    with open_checkpoint(tmp_path / "a.nemo") as a, open_checkpoint(tmp_path / "b.nemo") as b:
        assert a.vocabulary() == b.vocabulary()
        assert len(a.vocabulary()) == len(start) + 1
        assert same(dict(a), dict(b))


BAD = {
    "rank below 0": ({"rank": -1}, ConfigError, "rank=-1 is not a number"),
    "rank and energy": ({"rank": 2, "energy": 0.9}, ConfigError, "leave one of them out"),
    "share above 1": ({"keep": 2}, ConfigError, "keep=2 is not a share"),
    "type": ({"dtype": "bfloat"}, ConfigError, "did you mean 'bfloat16'"),
    "option": ({"ranks": 2}, ConfigError, "no option 'ranks'; did you mean 'rank'"),
    "ending": ({"output": "pt.nemo"}, ConfigError, "ends in .pack.safetensors"),
    "exists": ({"output": "old.pack.safetensors"}, OutputError, "exists already"),
    "the base itself": ({"expert": "base.nemo"}, PlanError, "does not differ from"),
    "another model": ({"expert": "other.nemo"}, PlanError, "another shape"),
    "not finite": ({"expert": "broken.nemo"}, PlanError, "NaN or infinite values"),
    "an adapter": ({"expert": "adapter"}, PlanError, "small already"),
    "a pack": ({"expert": "old.pack.safetensors"}, PlanError, "small already"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_packed(change, kind, message, tmp_path):
    base, (expert, *_) = family()
    write_nemo(tmp_path / "base.nemo", base)
    write_nemo(tmp_path / "expert.nemo", expert)
    write_nemo(tmp_path / "other.nemo", state_dict(width=16))
    write_nemo(tmp_path / "broken.nemo", {**expert, LINEAR: expert[LINEAR] * torch.nan})
    module = LINEAR.removesuffix(".weight")
    lora_folder(tmp_path / "adapter", {module: (torch.ones(24, 1), torch.ones(1, 12))})
    pack(tmp_path / "expert.nemo", tmp_path / "base.nemo", tmp_path / "old.pack.safetensors")
    before = sorted(tmp_path.iterdir())
    options = dict(change)
    source, output = options.pop("expert", "expert.nemo"), options.pop("output", "new.pack.safetensors")
    with pytest.raises(kind, match=message):
        pack(tmp_path / source, tmp_path / "base.nemo", tmp_path / output, **options)
    assert sorted(tmp_path.iterdir()) == before


def test_a_pack_belongs_to_its_base(wide, tmp_path):
    base, expert, start, _ = wide
    packed = pack(expert, base, tmp_path / "pt.pack.safetensors").output
    other = write_nemo(tmp_path / "other.nemo", fine_tuned(start, 5))
    with pytest.raises(
        CheckpointError, match=r"pack of a model trained from .*base.nemo .*which .*other.nemo .* is not"
    ):
        merge(other, [packed], "soup", output=tmp_path / "m.nemo")
    with pytest.raises(PlanError, match="is an expert pack, which changes a base"):
        merge(None, [packed, packed], "soup", output=tmp_path / "m.nemo")
    with pytest.raises(PlanError, match="is an expert pack; pass the model"):
        merge(packed, [expert], "soup", output=tmp_path / "m.nemo")
    moved = base.rename(tmp_path / "elsewhere.nemo")
    merge(moved, [packed], "soup", output=tmp_path / "m.nemo")


def damaged(path: Path, tensors=None, **about) -> None:
    """Changes tensors of a pack (None removes one) or keys of its header."""
    with safe_open(path, "pt") as file:
        header = file.metadata()
    known = {**json.loads(header["nemo_merge_pack"]), **about}
    held = {**load_file(path), **(tensors or {})}
    kept = {name: value for name, value in held.items() if value is not None}
    save_file(kept, path, {**header, "nemo_merge_pack": json.dumps({k: v for k, v in known.items() if v is not None})})


N = 96 * 48  # entries of LINEAR
HOSTILE = {
    "later version": ({}, {"version": 2}, "is a pack of version 2"),
    "no version": ({}, {"version": None}, "not that of a pack"),
    "no base": ({}, {"base": None}, "not that of a pack"),
    "base of another kind": ({}, {"base": {"path": "x", "sha256": {"a": 3}}}, "not that of a pack"),
    "tokens": ({}, {"vocabulary": {"kind": "x"}, "config": {}, "tokenizers": {}}, "list of tokens is damaged"),
    "unknown part": ({f"{LINEAR}/middle": torch.ones(2)}, {}, "is no part of a pack"),
    "no name": ({"whole": torch.ones(2)}, {}, "is no part of a pack"),
    "half of the factors": ({f"{LINEAR}/right": None}, {}, "do not make a change"),
    "values without places": ({f"{LINEAR}/mask": None}, {}, "do not make a change"),
    "unknown tensor": ({"x.weight/whole": torch.ones(2)}, {}, "changes tensor 'x.weight', which"),
    "whole of another shape": ({f"{STATISTICS}/whole": torch.ones(7)}, {}, r"has the shape \[7\] instead of \[48\]"),
    "inner dimensions": ({f"{LINEAR}/right": torch.ones(9, 48)}, {}, "left and right of tensor"),
    "huge factors": ({f"{LINEAR}/left": torch.ones(1 << 16, 1)}, {}, "left and right of tensor"),
    "integer factors": ({f"{LINEAR}/left": torch.ones(96, 1).int()}, {}, "not floating-point"),
    "short mask": ({f"{LINEAR}/mask": torch.zeros(9, dtype=torch.uint8)}, {}, "mask of tensor"),
    "full mask": ({f"{LINEAR}/mask": torch.full((N // 8,), 255, dtype=torch.uint8)}, {}, "are not 921 of the 4608"),
    "places beyond the end": (
        {f"{LINEAR}/mask": None, f"{LINEAR}/index": torch.arange(N - 920, N + 1).int()}, {}, "are not 921 of the 4608"),
    "negative places": (
        {f"{LINEAR}/mask": None, f"{LINEAR}/index": torch.arange(-1, 920).int()}, {}, "are not 921 of the 4608"),
    "places twice": (
        {f"{LINEAR}/mask": None, f"{LINEAR}/index": torch.zeros(921).int()}, {}, "not ascending"),
    "wide places": ({f"{LINEAR}/mask": None, f"{LINEAR}/index": torch.arange(921)}, {}, "index of tensor"),
    "not finite": ({f"{LINEAR}/values": torch.full((921,), torch.nan)}, {}, "NaN or infinite"),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "about", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_packs_are_refused_before_anything_is_written(tensors, about, message, wide, tmp_path):
    base, expert, *_ = wide
    packed = pack(expert, base, tmp_path / "pt.pack.safetensors").output
    damaged(packed, tensors, **about)
    with pytest.raises(NemoMergeError, match=message):
        merge(base, [packed], "ties", output=tmp_path / "m.nemo")
    assert not (tmp_path / "m.nemo").exists()


def test_damaged_bytes_give_clear_errors_or_tensors(wide, tmp_path):
    base, expert, *_ = wide
    packed = pack(expert, base, tmp_path / "pt.pack.safetensors", keep=0.03).output
    whole = packed.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    outcomes = set()
    for seed in range(60):
        chance = random.Random(seed)
        data = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(8 + header if seed % 2 else len(data))] = chance.randrange(256)
        packed.write_bytes(data[: chance.randrange(len(data))] if seed % 10 == 0 else data)
        try:
            read(base, packed)
            outcomes.add("tensors")
        except NemoMergeError as error:
            assert str(packed) in str(error)  # noqa: PT017  # which of the two happens is left to the bytes
            outcomes.add("error")
    assert outcomes == {"tensors", "error"}


def test_packs_tell_of_themselves(wide, tmp_path):
    base, expert, *_ = wide
    report = pack(expert, base, tmp_path / "x.pack.safetensors", name="pt", rank=2, keep=0.1)
    with open_checkpoint(report.output) as packed:
        assert isinstance(packed, PackCheckpoint)
        shown = f"of {expert} (dtype bfloat16, keep 0.1, rank 2; lacks {report.error:.1%} of its change)"
        assert packed.metadata.model_class == shown
        assert packed.details["pack"]["name"] == "pt"
        assert packed.details["pack"]["settings"] == {"rank": 2, "keep": 0.1, "dtype": "bfloat16"}
        with pytest.raises(PlanError, match="cannot be what a merge starts from"):
            packed.writer(tmp_path / "m", {}, {})
        with pytest.raises(CheckpointError, match="no packed file"):
            packed.artefact("tokenizer.model")
    assert str(report).startswith(f"{report.output}: pt packed into 0.0 MB, ")
