"""Everything a user can get wrong in the inputs of a merge: exit code 2, one message that names it, nothing written.

These are the mistakes that other merging programs let pass, or answer with a traceback or a message without the file.
Settings that are misspelt or out of range are in ``test_cli.py``; the arithmetic of tiny changes is in
``tests/methods/test_properties.py``, ``test_oracles.py`` and ``test_identities.py``.
"""

from __future__ import annotations

import json
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from nemo_merge.cli import main
from tests.fixtures.models import family, write_huggingface, write_nemo

MATRIX = "encoder.layers.0.self_attn.linear_q.weight"
VARIANCE = "encoder.layers.0.conv.batch_norm.running_var"


def without(model):
    del model[MATRIX]


def with_another(model):
    model["encoder.layers.0.lora_A.weight"] = torch.ones(2, 12)


def in_another_shape(model):
    model[MATRIX] = torch.zeros(6, 12)


def with_nan(model):
    model[MATRIX][3, 4] = float("nan")


def with_a_negative_variance(model):
    model[VARIANCE][0] = -0.1


def as_integers(model):
    model[MATRIX] = model[MATRIX].to(torch.int32)


def merge(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["nemo-merge", "merge", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        main()
    return done.value.code, capsys.readouterr().err


def check(code, message, folder: Path, *wanted: str) -> None:
    assert code == 2
    assert message.startswith("nemo-merge: error: ")
    assert "Traceback" not in message
    for part in wanted:
        assert part in message
    assert {path.name for path in folder.iterdir()} <= {"inputs", "kept"}


@pytest.mark.parametrize("kind", ["nemo", "huggingface"])
@pytest.mark.parametrize(
    ("damage", "wanted"),
    [
        (without, [f"tensor {MATRIX!r} is missing"]),
        (with_another, ["tensor 'encoder.layers.0.lora_A.weight' is not in", "would lose what they hold"]),
        (in_another_shape, ["tensors of another shape", f"{MATRIX!r} is [6, 12] instead of [12, 12]"]),
        (with_nan, [f"tensor {MATRIX!r} holds 1 values that are NaN or infinite"]),
        (with_a_negative_variance, [f"tensor {VARIANCE!r} holds negative variances"]),
        (as_integers, ["another kind of type", f"{MATRIX!r} is torch.int32"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_expert_that_does_not_fit(tmp_path, capsys, monkeypatch, kind, damage, wanted):
    """The message says which of the experts it is."""
    base, (good, bad, _) = family()
    damage(bad)
    (tmp_path / "inputs").mkdir()
    write = write_nemo if kind == "nemo" else write_huggingface
    paths = [write(tmp_path / "inputs" / name, model) for name, model in (("base", base), ("good", good), ("bad", bad))]
    arguments = [f"base={paths[0]}", f"experts=[{paths[1]},{paths[2]}]", f"output={tmp_path / 'm'}"]
    code, message = merge(capsys, monkeypatch, "method=ties", *arguments)
    check(code, message, tmp_path, f"{paths[2]}: ", *wanted)
    assert f"{paths[1]}: " not in message


class Opens:
    def __reduce__(self):
        return open, ("touched", "w")


def crafted(path: Path) -> None:
    """A weights file whose pickle calls ``open``."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Opens(), protocol=2))
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_file_cut_short_is_named(tmp_path, capsys, monkeypatch, length):
    base, (expert, *_) = family()
    (tmp_path / "inputs").mkdir()
    paths = [write_huggingface(tmp_path / "inputs" / name, model) for name, model in (("b", base), ("e", expert))]
    file = paths[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    code, message = merge(
        capsys, monkeypatch, "method=soup", f"base={paths[0]}", f"experts=[{paths[1]}]", f"output={tmp_path / 'm'}"
    )
    check(code, message, tmp_path, str(file))


def test_a_crafted_pickle_is_refused_and_nothing_of_it_runs(nemo_family, tmp_path, capsys, monkeypatch):
    import io
    import tarfile

    base, (expert, *_) = nemo_family
    monkeypatch.chdir(tmp_path)
    crafted(tmp_path / "inputs" / "weights")
    content = (tmp_path / "inputs" / "weights").read_bytes()
    with tarfile.open(expert, "w:") as tar:
        for name, data in (("./model_config.yaml", b"target: x\n"), ("./model_weights.ckpt", content)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    code, message = merge(capsys, monkeypatch, "method=soup", f"base={base}", f"experts=[{expert}]", "output=m.nemo")
    check(code, message, tmp_path, str(expert), "refused, because its pickle holds more than tensors")


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (["base=null", "method=task_arithmetic"], ["task_arithmetic works on task vectors and needs a base; pass base="]),
        (["rules=[{match: nosuch, scale: 1}]"], ["rule 1 (match=nosuch) matches no tensor", "nemo-merge inspect"]),
        (["experts=[gone.nemo]"], ["gone.nemo: no such file"]),
        (["method=ties", "method.density=7"], ["density=7 is out of range"]),
        (["method=task-arithmetic"], ["did you mean 'task_arithmetic'?"]),
        (["method=ties", "method.densty=0.1"], ["has no parameter 'densty'; did you mean 'density'?"]),
    ],
)  # fmt: skip
def test_settings_that_other_programs_let_pass(nemo_family, tmp_path, capsys, monkeypatch, settings, wanted):
    base, experts = nemo_family
    inputs = [f"base={base}", f"experts=[{','.join(map(str, experts))}]", f"output={tmp_path / 'm.nemo'}"]
    code, message = merge(capsys, monkeypatch, *inputs, *settings)
    check(code, message, tmp_path, *wanted)


@pytest.mark.parametrize("kind", ["nemo", "huggingface"])
def test_an_output_that_exists_is_not_touched(tmp_path, capsys, monkeypatch, kind):
    base, (expert, *_) = family()
    (tmp_path / "inputs").mkdir()
    write = write_nemo if kind == "nemo" else write_huggingface
    paths = [write(tmp_path / "inputs" / name, model) for name, model in (("b", base), ("e", expert))]
    kept = tmp_path / "kept"
    if kind == "nemo":
        kept.write_text("kept")
    else:
        kept.mkdir()
        (kept / "config.json").write_text(json.dumps("kept"))
    code, message = merge(
        capsys, monkeypatch, "method=soup", f"base={paths[0]}", f"experts=[{paths[1]}]", f"output={kept}"
    )
    check(code, message, tmp_path, f"{kept}: exists already; pass overwrite=true")
    assert "kept" in (kept if kind == "nemo" else kept / "config.json").read_text()
    assert kind == "nemo" or [path.name for path in kept.iterdir()] == ["config.json"]
