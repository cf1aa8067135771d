"""Experts that are added to merged models, and taken out again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from nemo_merge import extend, forget, merge, open_checkpoint, pack
from nemo_merge.errors import CheckpointError, ConfigError, NemoMergeError, OutputError, PlanError
from nemo_merge.merging import pack_experts
from nemo_merge.merging.reproduce import reproduce
from nemo_merge.methods import get, names
from tests.fixtures.adapters import lora_folder
from tests.fixtures.models import family, fine_tuned, same, state_dict, write_nemo
from tests.fixtures.vocabularies import model

ADDITIVE = [name for name in names() if get(name).additive_factor(torch.ones(3)) is not None]
OTHERS = [
    name
    for name in names()
    if name not in ADDITIVE and not get(name).uses_posteriors and get(name).maximum_experts is None and name != "emr"
]


@pytest.fixture
def four(tmp_path):
    """A base and four experts."""
    base, experts = family(4)
    paths = [write_nemo(tmp_path / f"{name}.nemo", some) for name, some in zip("wxyz", experts, strict=True)]
    return write_nemo(tmp_path / "base.nemo", base), paths


def distance(a: Path, b: Path) -> float:
    """The largest difference of an entry; tokens must be the same."""
    with open_checkpoint(a) as one, open_checkpoint(b) as other:
        assert list(one) == list(other)
        assert one.vocabulary() == other.vocabulary()
        return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def inside(path: Path) -> dict[str, float]:
    """Experts and weights in the record of a model."""
    with open_checkpoint(path) as checkpoint:
        composition = checkpoint.metadata.provenance["composition"]
    return {entry["name"]: entry["weight"] for entry in composition["experts"]}


def test_the_methods_that_add():
    assert ADDITIVE == ["breadcrumbs", "lors", "soup", "star", "task_arithmetic"]


@pytest.mark.parametrize(
    ("method", "scale", "statistics"),
    [(method, *((0.3, "average") if index % 2 else (None, "pooled"))) for index, method in enumerate(ADDITIVE)]
    + [pytest.param(method, 1.5, "base", marks=pytest.mark.slow) for method in ADDITIVE],
)
def test_an_update_is_the_merge_of_all_and_can_be_undone(method, scale, statistics, four, tmp_path):
    base, experts = four
    weights = [1, 2, 0.5, 1.5]
    options = {"batch_norm": statistics} | ({} if scale is None else {"scale": scale})
    for name, part in (("three", slice(3)), ("all", slice(4)), ("last", slice(1, 4))):
        merge(base, experts[part], method, output=tmp_path / f"{name}.nemo", weights=weights[part], **options)
    added = extend(tmp_path / "three.nemo", experts[3], tmp_path / "a.nemo", weight=1.5, how="update")
    assert added.how == "update"
    assert not added.approximations
    assert distance(added.output, tmp_path / "all.nemo") < 1e-6
    assert inside(added.output) == dict(zip("wxyz", weights, strict=True))
    record = added.merge.provenance
    assert f"--scale={record['composition']['method']['scale']!r}" in record["command"].split()
    undone = forget(added.output, "z", tmp_path / "b.nemo", how="update")
    assert distance(undone.output, tmp_path / "three.nemo") < 1e-6
    first = forget(added.output, "w", tmp_path / "c.nemo", how="update")
    assert distance(first.output, tmp_path / "last.nemo") < 1e-6
    for path in (added.output, first.output):
        assert reproduce(path).same_bytes


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name in ("lors", "boosted_tsvm") else pytest.mark.slow)
        for name in (*ADDITIVE, *OTHERS)
    ],
)
def test_where_all_experts_are_found_they_are_merged_again(method, four, tmp_path):
    base, experts = four
    for name, some in (("two", experts[:2]), ("three", experts[:3]), ("rest", experts[1:3])):
        merge(base, some, method, output=tmp_path / f"{name}.nemo")
    added = extend(tmp_path / "two.nemo", experts[2], tmp_path / "a.nemo")
    left = forget(added.output, "w", tmp_path / "b.nemo")
    assert (added.how, left.how) == ("merge", "merge")
    assert distance(added.output, tmp_path / "three.nemo") == 0
    assert distance(left.output, tmp_path / "rest.nemo") == 0
    assert list(left.experts) == ["x", "y"]


@pytest.mark.parametrize("method", [pytest.param("lors", marks=pytest.mark.slow), "boosted_tsvm"])
def test_a_chain(method, four, tmp_path):
    """Merge, extend, extend, forget the first; every model can be repeated, the last also without what came before."""
    base, experts = four
    packs = tmp_path / "packs"
    merge(base, experts[:2], method, output=tmp_path / "0.nemo")
    pack_experts(tmp_path / "0.nemo", packs, keep=1)
    extend(tmp_path / "0.nemo", experts[2], tmp_path / "1.nemo", packs=packs, keep=1)
    for gone in experts[:3]:
        gone.unlink()
    second = extend(tmp_path / "1.nemo", experts[3], tmp_path / "2.nemo", name="italian", packs=packs, keep=1)
    third = forget(second.output, "w", tmp_path / "3.nemo", packs=packs)
    assert (second.how, third.how) == ("merge", "merge")  # packs that hold all are as good as the experts
    assert list(third.experts) == ["x", "y", "italian"]
    assert sorted(path.name for path in packs.iterdir()) == [f"{name}.pack.safetensors" for name in ("italian", *"wxy")]
    with open_checkpoint(third.output) as checkpoint:
        record = checkpoint.metadata.provenance["composition"]
    assert record["history"] == [f"w, x merged by {method}", "y added", "italian added", "w taken out"]
    assert record["experts"][0]["kept_as"]["error"] == 0
    assert record["experts"][0]["kept_as"]["bytes"] == (packs / "x.pack.safetensors").stat().st_size
    assert reproduce(second.output).same_bytes
    (tmp_path / "0.nemo").unlink()
    (tmp_path / "2.nemo").unlink()
    assert reproduce(third.output).same_bytes


def test_without_the_earlier_experts_a_method_that_adds_goes_on(four, tmp_path):
    base, experts = four
    merge(base, experts[:3], "lors", output=tmp_path / "m.nemo")
    merge(base, experts, "lors", output=tmp_path / "all.nemo")
    merge(base, [*experts[:2], experts[3]], "lors", output=tmp_path / "swapped.nemo")
    for gone in experts[:3]:
        gone.rename(gone.with_suffix(".gone"))
    added = extend(tmp_path / "m.nemo", experts[3], tmp_path / "a.nemo")
    assert added.how == "update"
    assert distance(added.output, tmp_path / "all.nemo") < 1e-6
    with pytest.raises(PlanError, match=r"(?s)w: neither the expert nor a pack.*say where"):
        forget(added.output, "y", tmp_path / "b.nemo")
    experts[2].with_suffix(".gone").rename(experts[2])
    taken = forget(added.output, "y", tmp_path / "b.nemo")
    assert taken.how == "update"
    assert distance(taken.output, tmp_path / "swapped.nemo") < 1e-6


def test_what_a_pack_lacks_stays(tmp_path):
    base, experts = state_dict(width=48), []
    paths = [write_nemo(tmp_path / "base.nemo", base)]
    for seed, name in enumerate("ab"):
        experts.append(fine_tuned(base, seed))
        paths.append(write_nemo(tmp_path / f"{name}.nemo", experts[-1]))
    merge(paths[0], paths[1:], "task_arithmetic", output=tmp_path / "m.nemo", scale=1.0)
    first, second = pack_experts(tmp_path / "m.nemo", tmp_path / "packs", rank=4, keep=0.1)
    for path in paths[1:]:
        path.unlink()
    taken = forget(tmp_path / "m.nemo", "a", tmp_path / "b.nemo", how="update", packs=tmp_path / "packs")
    assert taken.approximations == [
        f"a was taken out by its pack, which lacks {first.error:.1%} of its change: so much of it stays"
    ]
    with open_checkpoint(taken.output) as left:
        floats = [name for name in left if left[name].is_floating_point()]
        stays = sum(float((left[name] - experts[1][name]).square().sum()) for name in floats)
    whole = sum(float((experts[0][name] - base[name]).square().sum()) for name in floats)
    assert (stays / whole) ** 0.5 == pytest.approx(first.error, rel=1e-2)
    again = forget(tmp_path / "m.nemo", "a", tmp_path / "c.nemo", how="merge", packs=tmp_path / "packs")
    assert again.approximations == [f"b comes from a pack, which lacks {second.error:.1%} of its change"]


def test_the_running_mean_has_to_be_asked_for(four, tmp_path):
    base, experts = four
    merge(base, experts[:3], "ties", output=tmp_path / "m.nemo")
    experts[0].unlink()
    with pytest.raises(PlanError, match=r"(?s)w: neither.*ties does not treat experts one by one.*running mean"):
        extend(tmp_path / "m.nemo", experts[3], tmp_path / "a.nemo")
    added = extend(tmp_path / "m.nemo", experts[3], tmp_path / "a.nemo", how="update")
    assert list(added.approximations) == ["z was added as a running mean"]
    with (
        open_checkpoint(tmp_path / "m.nemo") as m,
        open_checkpoint(experts[3]) as z,
        open_checkpoint(added.output) as a,
    ):
        for name in (name for name in m if m[name].is_floating_point()):
            assert torch.allclose(a[name], 0.75 * m[name] + 0.25 * z[name], atol=1e-6)
    assert reproduce(added.output).same_bytes
    with pytest.raises(PlanError, match="none can be taken out alone"):
        forget(added.output, "z", tmp_path / "b.nemo", how="update")


def test_without_a_base(four, tmp_path):
    _, experts = four
    merge(None, experts[:3], "soup", output=tmp_path / "m.nemo", weights=[1, 2, 3])
    merge(None, experts, "soup", output=tmp_path / "all.nemo", weights=[1, 2, 3, 1])
    added = extend(tmp_path / "m.nemo", experts[3], tmp_path / "a.nemo", how="update")
    assert distance(added.output, tmp_path / "all.nemo") < 1e-6
    assert distance(forget(added.output, "z", tmp_path / "b.nemo", how="update").output, tmp_path / "m.nemo") < 1e-6
    for options, message in (({"packs": tmp_path / "p"}, "leave packs out"), ({"base": experts[0]}, "leave base out")):
        with pytest.raises(ConfigError, match=message):
            extend(tmp_path / "m.nemo", experts[3], tmp_path / "c.nemo", **options)
    assert not (tmp_path / "p").exists()


PIECES = ["<unk>", "a", "b", "c"]
LANGUAGES = {"spl": ["<unk>", "<|pt|>"], "pt": PIECES}
GROWING = {
    "characters": ("abc", ["abcx", "abcxy", "cbayz"]),
    "pieces": (PIECES, [[*PIECES, "x"], [*PIECES, "x", "y"], [*PIECES, "z", "y"]]),
    "languages": (
        LANGUAGES,
        [
            {**LANGUAGES, "es": ["<unk>", "a", "n"]},
            {**LANGUAGES, "es": ["<unk>", "a", "n"], "it": ["<unk>", "q"]},
            {**LANGUAGES, "it": ["<unk>", "q"], "pt": [*PIECES, "d"]},
        ],
    ),
}


@pytest.mark.parametrize(
    ("tokens", "others"),
    [pytest.param(*GROWING[name], id=name, marks=pytest.mark.slow if name == "characters" else ()) for name in GROWING],
)
@pytest.mark.parametrize(
    ("method", "kind"), [pytest.param("task_arithmetic", "ctc", marks=pytest.mark.slow), ("lors", "tdt")]
)
def test_tokens_come_and_go_with_their_experts(method, kind, tokens, others, tmp_path):
    pytest.importorskip("sentencepiece")
    base = model(tmp_path / "base.nemo", tokens, 0, kind)
    experts = [model(tmp_path / f"e{index}.nemo", own, index + 1, kind) for index, own in enumerate(others)]
    weights = [1, 2, 0.5]
    for name, chosen in (("two", [0, 1]), ("all", [0, 1, 2]), ("last", [1, 2])):
        merge(
            base, [experts[index] for index in chosen], method, output=tmp_path / f"{name}.nemo",
            weights=[weights[index] for index in chosen], vocabulary="union",
        )  # fmt: skip
    added = extend(tmp_path / "two.nemo", experts[2], tmp_path / "a.nemo", how="update", weight=0.5)
    assert distance(added.output, tmp_path / "all.nemo") < 1e-6
    assert distance(forget(added.output, "e2", tmp_path / "b.nemo", how="update").output, tmp_path / "two.nemo") < 1e-6
    pack(experts[0], base, tmp_path / "e0.pack.safetensors", keep=1)
    experts[0].unlink()
    gone = forget(added.output, "e0", tmp_path / "c.nemo", how="update", packs=tmp_path)
    assert distance(gone.output, tmp_path / "last.nemo") < 1e-6
    assert distance(forget(added.output, "e0", tmp_path / "d.nemo").output, tmp_path / "last.nemo") == 0


def test_inputs_that_moved_are_found(four, tmp_path):
    base, experts = four
    merge(base, experts[:2], "ties", output=tmp_path / "m.nemo")
    away = tmp_path / "away"
    away.mkdir()
    for path in (base, experts[0]):
        shutil.move(path, away)
    with pytest.raises(
        CheckpointError, match=r"base.nemo: the base of the merged model is not there any more; pass it"
    ):
        extend(tmp_path / "m.nemo", experts[2], tmp_path / "a.nemo")
    report = extend(tmp_path / "m.nemo", experts[2], tmp_path / "a.nemo", base=away / "base.nemo", inputs=[away])
    assert report.how == "merge"


def test_adapters_are_experts_too(four, tmp_path):
    base, experts = four
    module = "encoder.layers.0.feed_forward1.linear1"
    adapter = lora_folder(tmp_path / "adapter", {module: (torch.ones(24, 1), torch.ones(1, 12))})
    merge(base, experts[:2], "task_arithmetic", output=tmp_path / "m.nemo")
    merge(base, [*experts[:2], adapter], "task_arithmetic", output=tmp_path / "all.nemo")
    report = extend(tmp_path / "m.nemo", adapter, tmp_path / "a.nemo", how="update", packs=tmp_path / "packs")
    assert report.pack is None
    assert distance(report.output, tmp_path / "all.nemo") < 1e-6
    assert inside(report.output) == {"w": 1, "x": 1, "adapter": 1}


BAD = {
    "no record": ({"merged": "base.nemo"}, CheckpointError, "carries no record of a merge"),
    "not a model": ({"merged": "nothing.nemo"}, CheckpointError, "no such file"),
    "another architecture": ({"expert": "wide.nemo"}, PlanError, "another shape"),
    "name inside": ({"name": "x"}, ConfigError, "'x' is the name of an expert that is in the model"),
    "name of a folder": ({"name": "a/x"}, ConfigError, "'a/x' cannot be the name of an expert"),
    "expert inside": ({"expert": "w.nemo", "name": "new"}, ConfigError, "is in the model already, as 'w'"),
    "no such expert": ({"forget": "ww"}, ConfigError, "no expert 'ww' is in the model; did you mean 'w'"),
    "another base": ({"base": "y.nemo"}, CheckpointError, "y.nemo: is not the base of the merged model"),
    "pack of another base": ({"expert": "strange.pack.safetensors"}, CheckpointError, "pass the base that it was"),
    "way": ({"how": "updated"}, ConfigError, "did you mean 'update'"),
    "weight": ({"weight": float("nan")}, ConfigError, "weight=nan"),
    "scale": ({"scale": 1e39}, ConfigError, r"scale=1e\+39 is not a finite number"),
    "output exists": ({"output": "y.nemo"}, OutputError, "exists already"),
    "output is an input": ({"output": "z.nemo", "overwrite": True}, OutputError, "is also an input"),
    "options without packs": ({"rank": 3}, ConfigError, "no pack to make"),
    "pack option": ({"packs": "packs", "ranks": 3}, ConfigError, "no option 'ranks'"),
}


@pytest.mark.parametrize(("change", "kind", "message"), BAD.values(), ids=BAD)
def test_bad_input(change, kind, message, four, tmp_path, monkeypatch):
    base, experts = four
    monkeypatch.chdir(tmp_path)
    merge(base, experts[:2], "soup", output="m.nemo")
    write_nemo(tmp_path / "wide.nemo", state_dict(width=16))
    pack(experts[3], experts[2], "strange.pack.safetensors")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    options = {"how": "update", "merged": "m.nemo", "output": "out.nemo", **change}
    if "forget" in options:
        verb, options["name"] = forget, options.pop("forget")
    else:
        verb, options["expert"] = extend, options.get("expert", "z.nemo")
    with pytest.raises(kind, match=message):
        verb(**options)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_the_only_expert_cannot_go(four, tmp_path):
    base, experts = four
    merge(base, experts[:1], "task_arithmetic", output=tmp_path / "m.nemo")
    with pytest.raises(PlanError, match="w is the only expert in it"):
        forget(tmp_path / "m.nemo", "w", tmp_path / "a.nemo")


@pytest.mark.parametrize("how", ["auto", "merge", "update"])
def test_what_is_left_must_have_weight(how, four, tmp_path):
    base, experts = four
    merge(base, experts[:2], "soup", output=tmp_path / "m.nemo", weights=[0, 1])
    with pytest.raises(NemoMergeError):
        forget(tmp_path / "m.nemo", "x", tmp_path / "a.nemo", how=how)


@pytest.mark.parametrize(
    "settings",
    [{"rules": [{"group": "head", "method": "base"}]}, {"then": ["lines"]}, {"as_adapter": True}],
    ids=["rules", "then", "adapter"],
)
def test_what_only_a_merge_of_all_can_do(settings, four, tmp_path):
    base, experts = four
    module = "encoder.layers.0.feed_forward1.linear1"
    sources = experts[:3]
    if "as_adapter" in settings:
        sources = [
            lora_folder(tmp_path / f"a{seed}", {module: (torch.randn(24, 2), torch.randn(2, 12))}) for seed in range(3)
        ]
    output = "m" if "as_adapter" in settings else "m.nemo"
    merge(base, sources[:2], "task_arithmetic", output=tmp_path / output, **settings)
    merge(base, sources, "task_arithmetic", output=tmp_path / f"all-{output}", **settings)
    with pytest.raises(PlanError, match="only a merge of all experts"):
        extend(tmp_path / output, sources[2], tmp_path / f"a-{output}", how="update")
    report = extend(tmp_path / output, sources[2], tmp_path / f"a-{output}")
    with open_checkpoint(report.output) as a, open_checkpoint(tmp_path / f"all-{output}") as b:
        assert same(dict(a), dict(b))


@pytest.mark.parametrize("how", ["merge", "update"])
def test_nothing_is_left_of_what_fails(how, tmp_path):
    base = model(tmp_path / "base.nemo", "abc")
    experts = [model(tmp_path / f"{index}.nemo", tokens, index) for index, tokens in ((1, "abc"), (2, "abcx"))]
    merge(base, experts[:1], "lors", output=tmp_path / "m.nemo")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(PlanError, match="pass vocabulary=base"):
        extend(
            tmp_path / "m.nemo", experts[1], tmp_path / "a.nemo", how=how, packs=tmp_path / "packs", vocabulary="strict"
        )
    assert not list((tmp_path / "packs").iterdir())
    assert sorted(path for path in tmp_path.iterdir() if path.name != "packs") == before


def test_a_damaged_record_is_told(four, tmp_path):
    base, experts = four
    merge(base, experts[:2], "soup", output=tmp_path / "m.nemo")
    with open_checkpoint(tmp_path / "m.nemo") as checkpoint:
        config = dict(checkpoint.metadata.config)
    config["nemo_merge"]["composition"] = {"experts": [{"name": "x"}]}
    write_nemo(tmp_path / "damaged.nemo", family()[0], config)
    with pytest.raises(NemoMergeError, match="its record does not say what was merged"):
        extend(tmp_path / "damaged.nemo", experts[2], tmp_path / "a.nemo")
