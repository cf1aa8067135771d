"""``nemo-merge compare-upstreams`` as users call it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from nemo_merge.fusion.choice_job import FILES

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("lhotse", "matplotlib")), reason="Lhotse or matplotlib is not installed"
)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.nemo", "cuts.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "choice.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.nemo"], "none.nemo: no such file or folder"),
        (["a.nemo", "conf/none.yaml"], "conf/none.yaml: no such file or folder"),
        (["wavlm"], "wavlm: no such file or folder, and no OWNER/NAME of the Hugging Face hub"),
        (["a.nemo", "--cuts", "none.jsonl"], "none.jsonl: no such file"),
        (["a.nemo", "-o", "a.nemo"], "a.nemo: is a file"),
        (["a.nemo", "-o", "no/where"], "the folder no does not exist"),
        (["a.nemo", "-o", "old"], "old/choice.json: exists already; pass --overwrite"),
        (["a.nemo", "--layers", "0"], "'0' is neither a number of layers"),
        (["a.nemo", "--layers", "0,x"], "'0,x' is neither a number of layers"),
        (["a.nemo", "--seconds", "0"], "'--seconds'"),
        (["a.nemo", "--frames", "3"], "'--frames'"),
        ([], "Missing argument 'UPSTREAM...'"),
    ],
)
def test_what_is_wrong_is_one_message(files, arguments, message, command_line):
    for option, value in (("--cuts", "cuts.jsonl"), ("-o", "out")):
        arguments = arguments if option in arguments else [*arguments, option, value]
    before = sorted(files.rglob("*"))
    code, out, err = command_line("compare-upstreams", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert sorted(files.rglob("*")) == before


def test_libraries_that_are_not_installed_are_named(files, monkeypatch, command_line):
    monkeypatch.setattr("nemo_merge.fusion.choice_job.find_spec", lambda name: None if name == "matplotlib" else name)
    code, _, err = command_line("compare-upstreams", "a.nemo", "--cuts", "cuts.jsonl", "-o", "out")
    assert (code, "matplotlib; pip install 'nemo-merge[fusion]'" in err) == (2, True)


def test_neither_help_nor_errors_import_a_library(files):
    program = """
import sys
from nemo_merge.cli import main
sys.argv[1:] = ["compare-upstreams", *sys.argv[1:]]
try:
    main()
finally:
    print(sorted({"torch", "nemo", "lhotse", "transformers", "numpy"} & set(sys.modules)))
"""
    for arguments in (["--help"], ["none.nemo", "--cuts", "cuts.jsonl", "-o", "out"]):
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "[]", done.stderr


def write_cuts(folder) -> str:
    lhotse, soundfile = pytest.importorskip("lhotse"), pytest.importorskip("soundfile")
    made = []
    for index in range(8):
        audio = 0.1 * np.random.default_rng(index).standard_normal(8000 + 500 * index)
        soundfile.write(folder / f"{index}.wav", audio, 16000)
        cut = lhotse.Recording.from_file(folder / f"{index}.wav").to_cut()
        cut.supervisions = [lhotse.SupervisionSegment(cut.id, cut.recording_id, 0, cut.duration)]
        cut.supervisions[0].custom = {"domain": "even" if index % 2 == 0 else "odd"}
        made.append(cut)
    lhotse.CutSet.from_cuts(made).to_file(folder / "cuts.jsonl")
    return str(folder / "cuts.jsonl")


@pytest.mark.slow
@pytest.mark.nemo
def test_models_merges_and_fused_encoders(files, command_line):
    pytest.importorskip("nemo.collections.asr")
    import torch

    import nemo_merge
    from nemo_merge.fusion import FusedUpstreamPreprocessor, compare_upstreams
    from tests.fixtures import nemo_models

    torch.set_num_threads(1)
    nemo_merge.register()
    cuts = write_cuts(files)
    first = nemo_models.ctc(0)
    first.save_to("a.nemo")
    nemo_models.perturbed(first, files / "b.nemo", 1)
    (files / "merge.yaml").write_text("{experts: [a.nemo, b.nemo], method: soup}")
    model, sources = nemo_models.ctc(2), [{"nemo": "a.nemo"}, {"nemo": "b.nemo"}]
    fused = FusedUpstreamPreprocessor(sources, mode="ws", output_dim=model.encoder._feat_in)
    with torch.no_grad():
        for weight in fused.upstreams[1].encoder.parameters():
            weight.add_(0.05 * torch.randn_like(weight))  # so that it is no longer what its file has
    fused.place_in(model)
    model.save_to("fused.nemo")
    light = FusedUpstreamPreprocessor(sources[1:], mode="ws", output_dim=fused.output_dim, save_upstreams=False)
    light.place_in(model)
    model.save_to("light.nemo")

    upstreams = ["a.nemo", "merge.yaml", "fused.nemo", "light.nemo"]
    options = ["--cuts", cuts, "--label", "domain", "--layers", "0,2", "--threads", "1"]
    code, out, err = command_line("compare-upstreams", *upstreams, *options, "-o", "choice")
    assert code == 0, err + (files / "choice.log").read_text()
    names = ["a.nemo (1)", "merge.yaml", "a.nemo (3)", "b.nemo (4)", "b.nemo (5)"]
    assert all(f"\n| {name} | 2 | 32 |" in out for name in names)
    assert out.splitlines()[-3:] == [f"choice/{name}" for name in FILES]
    assert all((files / "choice" / name).stat().st_size for name in FILES)
    written = json.loads((files / "choice" / "choice.json").read_text())
    inside = [*sources[:1], {"merge": "merge.yaml"}, *fused.upstreams, sources[1]]
    expected = compare_upstreams(inside, cuts, label="domain", layers=[0, 2])
    assert [item["name"] for item in written["upstreams"]] == names
    assert np.allclose(written["cka"], expected.cka, atol=1e-5)
    assert not np.allclose(expected.cka[6][:2], expected.cka[8][:2], atol=1e-3)  # the changed encoder is another one

    # What only the process finds is one message, too.
    for arguments, message in (
        (["a.nemo", *options, "--label", "dialect"], "no label 'dialect'"),
        (["cuts.jsonl", *options], "cuts.jsonl: "),
    ):
        code, _, err = command_line("compare-upstreams", *arguments, "-o", "bad")
        assert (code, message in err, "Traceback" in err) == (2, True, False)
        assert not (files / "bad").exists()
