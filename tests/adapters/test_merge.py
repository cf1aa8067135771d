"""``merge_adapters``: the front of ``merge`` for adapters."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_merge import merge
from nemo_merge.adapters import merge_adapters
from nemo_merge.errors import CheckpointError, ConfigError, NemoMergeError, PlanError
from nemo_merge.methods import get
from tests.fixtures.posteriors import bayesian_folder


@pytest.fixture
def base(tmp_path):
    save_file({"a.weight": torch.randn(12, 10), "b.weight": torch.randn(8, 9)}, tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


def folder(path, rank, seed, shapes=(("a", 12, 10), ("b", 8, 9))):
    generator = torch.Generator().manual_seed(seed)
    factors = {
        name: (torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator))
        for name, rows, columns in shapes
    }
    return bayesian_folder(path, factors, seed=seed)


@pytest.fixture
def adapters(tmp_path):
    return [folder(tmp_path / "one", 2, 0), folder(tmp_path / "two", 3, 1)]


def ranks(path):
    return {tensor.shape[0] for name, tensor in load_file(path / "adapter_model.safetensors").items() if "_A" in name}


@pytest.mark.parametrize(
    ("method", "rank", "as_adapter"),
    [
        ("tsvm", None, True),
        ("tsvm", "exact", True),
        ("tsvm", 2, 2),
        (get("tsvm", rank_fraction=0.1), None, True),
        ("ties", None, 3),
        ("precision_weighted", None, 3),
        ("precision_weighted", 5, 5),
    ],
)
def test_an_adapter_comes_out(tmp_path, base, adapters, method, rank, as_adapter):
    report = merge_adapters(base, adapters, method, output=tmp_path / "out", rank=rank)
    merge(base, adapters, method, output=tmp_path / "expected", as_adapter=as_adapter)
    assert report.provenance["as_adapter"] == as_adapter
    found, expected = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "expected"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_parameters_decide_whether_it_is_exact(tmp_path, base, adapters):
    merge_adapters(base, adapters, "knots", output=tmp_path / "out", combine="linear", weights=[1, 2])
    assert ranks(tmp_path / "out") == {5}
    merge_adapters(base, adapters, "knots", output=tmp_path / "out", combine="ties", overwrite=True)
    assert ranks(tmp_path / "out") == {3}


def test_a_model_comes_out(tmp_path, base, adapters):
    merge_adapters(base, adapters, "soup", output=tmp_path / "out.safetensors", dense=True, dtype="float64", scale=0.5)
    merge(base, adapters, "soup", output=tmp_path / "expected.safetensors", dtype="float64", scale=0.5)
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()


WRONG = {
    "a rank of a model": ({"dense": True, "rank": 4}, ConfigError, "leave it or dense=True out"),
    "no rank": ({"rank": 0}, ConfigError, "neither 'exact' nor a rank"),
    "a word": ({"rank": "all"}, ConfigError, "neither 'exact' nor a rank"),
    "the other option": ({"as_adapter": True}, ConfigError, "rank= and dense="),
    "exact, entry by entry": ({"rank": "exact", "method": "ties"}, PlanError, "looks at single entries"),
    "no such method": ({"method": "tie"}, ConfigError, "did you mean 'ties'"),
    "no such parameter": ({"densty": 1}, ConfigError, "no parameter 'densty'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_settings_that_do_not_fit_are_refused(tmp_path, base, adapters, case):
    options, kind, message = WRONG[case]
    with pytest.raises(kind, match=message):
        merge_adapters(base, adapters, **{"output": tmp_path / "out", **options})
    assert not (tmp_path / "out").exists()


def test_inputs_that_do_not_fit_are_refused(tmp_path, base, adapters):
    other = folder(tmp_path / "other", 2, 3, shapes=(("elsewhere", 4, 4),))
    shape = folder(tmp_path / "shape", 2, 3, shapes=(("a", 12, 11),))
    for wrong, kind, message in (
        (base, PlanError, "base.safetensors: is no PEFT adapter"),
        (other, CheckpointError, "changes 'elsewhere.weight', which .* does not have; is the adapter of this base"),
        (shape, CheckpointError, r"changes 'a.weight' as \[12, 11\], but it is \[12, 10\]"),
        (tmp_path / "nothing", NemoMergeError, "nothing"),
    ):
        with pytest.raises(kind, match=message):
            merge_adapters(base, [*adapters, wrong], "soup", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_package_is_light():
    code = "import sys, nemo_merge.adapters; assert not {'torch', 'nemo', 'lightning', 'peft', 'lhotse'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
