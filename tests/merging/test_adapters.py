"""Merges whose experts are adapters: files in, a model or an adapter out."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from nemo_merge import merge, open_checkpoint, plan_merge, sweep
from nemo_merge.checkpoints import AdapterCheckpoint
from nemo_merge.cli import cli
from nemo_merge.errors import CheckpointError, ConfigError, PlanError
from nemo_merge.merging import api
from nemo_merge.methods import get
from tests.fixtures.adapters import Model, factors, lora_folder, randomise

SHAPES = {
    "encoder.layers.0.linear_q": (12, 12),
    "encoder.layers.1.linear_out": (20, 12),
    "encoder.pointwise": (24, 12, 1),
    "encoder.conv": (8, 12, 3),
    "head": (5, 12),
}


@pytest.fixture
def base(tmp_path):
    """A model as a Hugging Face folder."""
    folder = tmp_path / "base"
    folder.mkdir()
    state = {name: tensor.contiguous() for name, tensor in Model().state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"architectures": ["Model"]}))
    return folder


@pytest.fixture
def adapters(tmp_path):
    """Three adapters of different ranks, modules and scalings."""
    return [
        lora_folder(tmp_path / "a", factors(SHAPES, 0)),
        lora_folder(tmp_path / "b", factors(SHAPES, 1, rank=3, skip=["head"]), alpha=6),
        lora_folder(tmp_path / "c", factors(SHAPES, 2, rank=1, skip=["encoder.conv"]), prefix=""),
    ]


def dense(base, adapters, folder):
    """The experts as whole models."""
    paths = []
    for adapter in adapters:
        with open_checkpoint(base) as checkpoint:
            expert = AdapterCheckpoint(adapter).bind(checkpoint)
            path = folder / f"dense-{adapter.name}"
            path.mkdir()
            save_file({name: expert[name].contiguous() for name in expert}, path / "model.safetensors")
            paths.append(path)
    return paths


@pytest.mark.parametrize("method", ["boosted_tsvm", "ties", "soup", "emr"])
def test_adapters_merge_like_the_models_that_they_make(tmp_path, base, adapters, method):
    report = merge(base, adapters, method, output=tmp_path / "out")
    merge(base, dense(base, adapters, tmp_path), method, output=tmp_path / "expected")
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "expected"))
    for name, tensor in expected.items():
        # Entries that float32 rounds to another side of TIES' threshold are no error of either.
        close = torch.isclose(found[name], tensor, rtol=1e-4, atol=1e-5)
        assert close.float().mean() > (0.98 if method == "ties" else 0.9999), name
    assert report.tensors["copy"]


def test_the_record_names_adapters(tmp_path, base, adapters):
    import hashlib

    report = merge(base, adapters, "tsvm", output=tmp_path / "out")
    entries = report.provenance["experts"]
    assert [entry["format"] for entry in entries] == ["adapter"] * 3
    assert entries[1]["path"] == str(adapters[1])
    for entry, adapter in zip(entries, adapters, strict=True):
        assert entry["sha256"] == {
            name: hashlib.sha256((adapter / name).read_bytes()).hexdigest()
            for name in ("adapter_model.safetensors", "adapter_config.json")
        }
    assert entries[1]["adapter"]["r"] == 3
    assert entries[1]["adapter"]["lora_alpha"] == 6
    assert yaml.safe_load((tmp_path / "out" / "merge.yaml").read_text())["experts"] == entries


def test_no_tensor_is_multiplied_out(tmp_path, base, adapters, monkeypatch):
    """A rotation-equivariant method never asks for an adapted tensor as such; nor does the plan."""
    from nemo_merge.checkpoints import AdaptedCheckpoint

    changed = {f"{name}.weight" for name in SHAPES}
    read = AdaptedCheckpoint.__getitem__
    asked = []
    monkeypatch.setattr(AdaptedCheckpoint, "__getitem__", lambda self, name: asked.append(name) or read(self, name))
    merge(base, adapters, "tsvm", output=tmp_path / "out")
    assert not asked
    merge(base, adapters, "ties", output=tmp_path / "ties")
    assert not changed & set(asked)


def test_a_merge_of_adapters_needs_the_base(tmp_path, base, adapters):
    with pytest.raises(PlanError, match="a: is an adapter, which changes a base; pass it with base="):
        merge(None, adapters, "soup", output=tmp_path / "out")
    with pytest.raises(PlanError, match="pass the model that it was trained on as base="):
        merge(adapters[0], adapters[1:], "soup", output=tmp_path / "out")


def test_batch_normalisation_and_whole_tensors(tmp_path, base, adapters):
    """Adapters that also replace whole tensors merge with those that do not."""
    head = torch.randn(5, 12)
    lora_folder(tmp_path / "d", factors(SHAPES, 3, skip=["head"]), extra={"base_model.model.head.weight": head})
    experts = [*adapters, tmp_path / "d"]
    merge(base, experts, "task_arithmetic", output=tmp_path / "out")
    merge(base, dense(base, experts, tmp_path), "task_arithmetic", output=tmp_path / "expected")
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "expected"))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("boosted_tsvm", {}), ("task_arithmetic", {"scale": 0.7, "weights": (1.0, -0.5, 2.0)}), ("iso_c", {}),
        ("cart", {}), ("karcher", {"space": "task_vectors"}), ("soup", {"scale": -0.5}),
    ],
)  # fmt: skip
def test_the_merged_adapter_is_the_merged_model(tmp_path, base, adapters, method, parameters):
    """Loaded by PEFT onto the base, the adapter gives the dense merge."""
    peft = pytest.importorskip("peft")
    report = merge(base, adapters, method, output=tmp_path / "lora", as_adapter=True, **parameters)
    merge(base, adapters, method, output=tmp_path / "model", **parameters)
    model = Model()
    model.load_state_dict(load_file(base / "model.safetensors"))
    loaded = peft.PeftModel.from_pretrained(model, tmp_path / "lora")
    merged = loaded.merge_and_unload().state_dict()
    for name, tensor in load_file(tmp_path / "model" / "model.safetensors").items():
        torch.testing.assert_close(
            merged[name], tensor, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["r"] <= 6  # the sum of the ranks
    assert report.provenance["as_adapter"] is True
    assert "PeftModel.from_pretrained" in (tmp_path / "lora" / "README.md").read_text()


def test_a_smaller_rank_is_the_best_approximation(tmp_path, base, adapters):
    report = merge(base, adapters, "task_arithmetic", output=tmp_path / "lora", as_adapter=2)
    merge(base, adapters, "task_arithmetic", output=tmp_path / "model")
    with open_checkpoint(base) as checkpoint:
        expert = open_checkpoint(tmp_path / "lora").bind(checkpoint)
        name = "encoder.layers.0.linear_q.weight"
        full = load_file(tmp_path / "model" / "model.safetensors")[name] - checkpoint[name]
        u, s, vt = torch.linalg.svd(full)
        torch.testing.assert_close(expert[name] - checkpoint[name], (u[:, :2] * s[:2]) @ vt[:2], rtol=1e-4, atol=1e-5)
    assert any("an adapter of rank 2 loses" in warning for warning in report.warnings)
    assert report.provenance["as_adapter"] == 2


def test_a_merged_adapter_can_be_repeated(tmp_path, base, adapters):
    from nemo_merge.merging.reproduce import reproduce

    merge(base, adapters, "boosted_tsvm", output=tmp_path / "lora", as_adapter=3)
    assert reproduce(tmp_path / "lora").same_bytes


def test_a_merged_adapter_is_an_expert_again(tmp_path, base, adapters):
    merge(base, adapters[:2], "task_arithmetic", scale=1.0, output=tmp_path / "lora", as_adapter=True)
    report = merge(base, [tmp_path / "lora", adapters[2]], "task_arithmetic", scale=1.0, output=tmp_path / "two")
    merge(base, adapters, "task_arithmetic", scale=1.0, output=tmp_path / "one")
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "one"))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    assert report.provenance["experts"][0]["adapter"]["lora_alpha"] <= 5
    assert len(report.provenance["experts"][0]["merged_from"]["experts"]) == 2


def test_embeddings_and_names_that_end_like_others(tmp_path):
    """PEFT takes a name in the list of targets for the end of any longer one; the adapter must not grow by that."""
    peft = pytest.importorskip("peft")

    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.embed, self.inner = torch.nn.Linear(4, 6), torch.nn.Embedding(9, 4), Inner()

    class Inner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(4, 6)

    torch.manual_seed(0)
    model = Outer()
    (tmp_path / "base").mkdir()
    save_file(model.state_dict(), tmp_path / "base" / "model.safetensors")
    config = peft.LoraConfig(r=2, target_modules="head|embed")
    for seed in (0, 1):
        wrapped = peft.get_peft_model(Outer(), config)
        randomise(wrapped, seed)
        wrapped.save_pretrained(tmp_path / str(seed), save_embedding_layers=False)
    experts = [tmp_path / "0", tmp_path / "1"]
    merge(tmp_path / "base", experts, "tsvm", output=tmp_path / "lora", as_adapter=True)
    merge(tmp_path / "base", experts, "tsvm", output=tmp_path / "model")
    merged = peft.PeftModel.from_pretrained(model, tmp_path / "lora").merge_and_unload().state_dict()
    for name, tensor in load_file(tmp_path / "model" / "model.safetensors").items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-6)


REFUSED = {
    "an elementwise method": ("ties", {}, "looks at single entries"),
    "directions of weights": ("karcher", {}, "pass method.space=task_vectors"),
    "post-processors": ("tsvm", {"then": ["lines"]}, "post-processors"),
    "a bad rank": ("tsvm", {"as_adapter": 0.5}, "as_adapter=0.5 is neither"),
    "a file": ("tsvm", {"output": "x.nemo"}, "the output is a folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_an_adapter(tmp_path, base, adapters, case):
    method, options, message = REFUSED[case]
    options = {"as_adapter": True, "output": "out", **options}
    options["output"] = tmp_path / options["output"]
    before = sorted(tmp_path.iterdir())
    with pytest.raises((PlanError, ConfigError), match=message):
        merge(base, adapters, method, **options)
    assert sorted(tmp_path.iterdir()) == before


def test_whole_models_and_whole_tensors_are_no_adapter(tmp_path, base, adapters):
    whole = dense(base, adapters[:1], tmp_path)
    with pytest.raises(PlanError, match="is a whole model"):
        merge(base, [*whole, adapters[1]], "tsvm", output=tmp_path / "out", as_adapter=True)
    extra = {"base_model.model.head.weight": torch.randn(5, 12)}
    lora_folder(tmp_path / "d", factors(SHAPES, 3, skip=["head"]), extra=extra)
    with pytest.raises(PlanError, match=r"'head.weight': .* otherwise than by LoRA \(full\)"):
        merge(base, [tmp_path / "d", adapters[1]], "tsvm", output=tmp_path / "out", as_adapter=True)


def test_command_line(tmp_path, base, adapters):
    experts = "[" + ",".join(map(str, adapters)) + "]"
    arguments = [
        "merge",
        "method=tsvm",
        f"base={base}",
        f"experts={experts}",
        f"output={tmp_path / 'out'}",
        "as_adapter=4",
    ]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "as_adapter=4" in yaml.safe_load((tmp_path / "out" / "merge.yaml").read_text())["command"]
    shown = CliRunner().invoke(cli, ["inspect", "--tensors", str(tmp_path / "out")], catch_exceptions=False)
    assert "LORA adapter" in shown.output
    assert "lora_A.weight" in shown.output
    planned = CliRunner().invoke(cli, ["plan", *arguments[1:4]], catch_exceptions=False)
    assert "encoder.pointwise.weight" in planned.output
    experts = f"[{{path:{adapters[0]},prefix:''}}]"
    again = [*arguments[:3], f"experts={experts}", f"output={tmp_path / 'again'}"]
    assert CliRunner().invoke(cli, again, catch_exceptions=False).exit_code == 0


def test_results_do_not_depend_on_the_number_of_threads(tmp_path, base, adapters):
    for workers in (1, 4):
        merge(base, adapters, "boosted_tsvm", output=tmp_path / f"model-{workers}", workers=workers)
        merge(base, adapters, "boosted_tsvm", output=tmp_path / f"lora-{workers}", workers=workers, as_adapter=True)
    for name in ("model", "lora"):
        file = "model.safetensors" if name == "model" else "adapter_model.safetensors"
        assert (tmp_path / f"{name}-1" / file).read_bytes() == (tmp_path / f"{name}-4" / file).read_bytes()


def test_a_sweep_gives_the_bytes_of_single_merges(tmp_path, base, adapters):
    reports = sweep(
        base, adapters, "boosted_tsvm", grid={"beta": [0.3, 1.0], "scale": [0.5, 1.0]}, output=tmp_path / "sweep"
    )
    assert len(reports) == 4
    for report in reports:
        values = report.provenance["method"]
        single = merge(
            base,
            adapters,
            "boosted_tsvm",
            beta=values["beta"],
            scale=values["scale"],
            output=tmp_path / "one",
            overwrite=True,
        )
        a, b = (found.output / "model.safetensors" for found in (report, single))
        assert a.read_bytes() == b.read_bytes()


def test_rules_apply_to_adapters(tmp_path, base, adapters):
    rules = [{"match": r"linear_q", "method": "base"}, {"group": "encoder", "method": "task_arithmetic", "scale": 1.0}]
    for name, experts in (("out", adapters), ("expected", dense(base, adapters, tmp_path))):
        merge(base, experts, "tsvm", rules=rules, output=tmp_path / name)
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "expected"))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_plan_of_adapters(base, adapters):
    with open_checkpoint(base) as checkpoint:
        bound = [AdapterCheckpoint(adapter).bind(checkpoint) for adapter in adapters]
        plan = plan_merge(checkpoint, bound, get("tsvm"))
        merged = {row.name for row in plan.rows if row.treatment != "copy"}
    assert merged == {f"{name}.weight" for name in SHAPES}


def test_inputs_that_change_are_noticed_before_the_adapter_appears(tmp_path, base, adapters, monkeypatch):
    monkeypatch.setattr(api, "fingerprints", lambda inputs: {})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="changed while it was read"):
        merge(base, adapters, "soup", output=tmp_path / "lora", as_adapter=True)
    assert sorted(tmp_path.iterdir()) == before
