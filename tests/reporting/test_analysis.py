"""The report: findings that fire when they should and not otherwise, tables, page, pictures, and the folder as a whole."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path

import pytest
import torch

from nemo_merge import analyze
from nemo_merge.checkpoints import StateDictCheckpoint
from nemo_merge.errors import ConfigError, OutputError, PlanError
from nemo_merge.merging.analysis import measure
from nemo_merge.reporting.analysis import Finding
from nemo_merge.reporting.analysis.about_experts import rounding_energy
from nemo_merge.reporting.analysis.tables import COLUMNS, expert_names
from tests.fixtures.models import StateDict, family, fine_tuned, write_huggingface, write_nemo

WIDTH = 32
BATCH_NORM = "encoder.layers.0.conv.batch_norm"


def base_model(layers: int = 3) -> StateDict:
    """Encoder and decoder of matrices, an embedding and a head."""
    base = {"decoder.embed_tokens.weight": torch.randn(60, WIDTH), "lm_head.weight": torch.randn(60, WIDTH)}
    for side in ("encoder", "decoder"):
        for layer in range(layers):
            base[f"{side}.layers.{layer}.fc1.weight"] = torch.randn(2 * WIDTH, WIDTH)
            base[f"{side}.layers.{layer}.fc1.bias"] = torch.randn(2 * WIDTH)
    base[f"{BATCH_NORM}.running_mean"] = torch.zeros(WIDTH)
    base[f"{BATCH_NORM}.running_var"] = torch.ones(WIDTH)
    return {name: tensor.double() for name, tensor in base.items()}


def noise(base: StateDict, size: float = 0.01) -> StateDict:
    """A random task vector without running statistics."""
    return {name: size * torch.randn_like(tensor) * ("running" not in name) for name, tensor in base.items()}


def moved(base: StateDict, *changes: StateDict) -> StateDict:
    return {name: tensor + sum(change[name] for change in changes) for name, tensor in base.items()}


def times(change: StateDict, factor: float, pattern: str = "") -> StateDict:
    return {name: value * (factor if re.search(pattern, name) else 1) for name, value in change.items()}


def kinds(base: StateDict, experts: list[StateDict], **options) -> dict[str, Finding]:
    report = analyze(
        StateDictCheckpoint(base, "base"),
        [StateDictCheckpoint(expert, f"expert_{index}") for index, expert in enumerate(experts)],
        **options,
    )
    return {finding.kind: finding for finding in report.findings}


def test_unrelated_experts_are_orthogonal_and_nothing_else_is_wrong():
    base = base_model()
    found = kinds(base, [moved(base, noise(base)) for _ in range(4)])
    assert set(found) == {"orthogonal", "sign_chance", "not_low_rank"}
    assert found["orthogonal"].values["kept_by_mean"] == pytest.approx([0.25] * 4, abs=0.01)
    assert "(mean cosine 0.00)" in found["orthogonal"].text
    assert all(finding.level == "note" for finding in found.values())
    assert found["sign_chance"].values["pairwise"] == pytest.approx(0.5, abs=0.02)


def test_aligned_experts():
    base = base_model()
    common = noise(base, 0.05)
    found = kinds(base, [moved(base, common, noise(base)) for _ in range(3)])
    assert {"aligned", "sign_agreement", "overlap"} <= set(found)
    assert not {"orthogonal", "opposed", "twin_experts"} & set(found)
    assert found["aligned"].values["mean_cosine"] > 0.9


def test_an_expert_that_moves_farther():
    base = base_model()
    changes = [noise(base), times(noise(base), 6), noise(base)]
    finding = kinds(base, [moved(base, change) for change in changes])["dominating_expert"]
    assert finding.level == "warning"
    assert finding.values["expert"] == "expert_1"
    assert finding.values["factor"] == pytest.approx(6, rel=0.05)
    # The weights do what the sentence says.
    weights = finding.values["weights"]
    assert f"method.weights=[{','.join(f'{weight:g}' for weight in weights)}]" in finding.text
    even = kinds(base, [moved(base, times(change, weight)) for change, weight in zip(changes, weights, strict=True)])
    assert "dominating_expert" not in even
    assert "dominating_expert" not in kinds(base, [moved(base, times(noise(base), size)) for size in (1, 1.5, 1)])


def test_opposed_experts():
    base = base_model()
    change = noise(base)
    found = kinds(base, [moved(base, change), moved(base, times(change, -1), noise(base))])
    assert found["opposed"].values["experts"] == ["expert_0", "expert_1"]
    assert found["opposed"].values["cosine"] == pytest.approx(-(0.5**0.5), abs=0.05)
    assert "sign_conflict" in found


def test_twins():
    base = base_model()
    change = noise(base)
    experts = [moved(base, change), moved(base, noise(base)), moved(base, change, noise(base, 1e-5))]
    assert kinds(base, experts)["twin_experts"].values["pairs"] == [["expert_0", "expert_2"]]
    assert "twin_experts" not in kinds(base, [moved(base, change), moved(base, times(change, 1.5))])


def test_another_base():
    base, other = base_model(), base_model()
    found = kinds(base, [moved(base, noise(base)), other])
    assert found["foreign_expert"].values["expert"] == "expert_1"
    assert found["foreign_expert"].values["relative_norm"] == pytest.approx(2**0.5, rel=0.1)


def test_experts_and_modules_that_do_not_move():
    base = base_model()
    found = kinds(base, [base, moved(base, times(noise(base), 0, "encoder"))])
    assert found["unchanged_expert"].values["experts"] == ["expert_0"]
    assert found["unchanged_module"].values["module"] == "encoder"
    assert "No expert differs" in kinds(base, [base, base])["unchanged_expert"].text


def test_where_the_change_lies():
    base = base_model()
    found = kinds(base, [moved(base, times(noise(base), 8, "decoder.layers")) for _ in range(2)])
    assert found["concentrated"].values["module"] == "decoder"
    assert found["concentrated"].values["share"] > 0.9
    one = kinds(base, [moved(base, times(noise(base), 20, r"encoder.layers.1.fc1.weight")) for _ in range(2)])
    assert one["dominating_tensor"].values["tensor"] == "encoder.layers.1.fc1.weight"


def test_drift_of_embeddings_and_heads():
    base = base_model(layers=12)
    found = kinds(base, [moved(base, times(noise(base), 8, "lm_head")), moved(base, noise(base))])
    assert found["drift"].values["role"] == "head"
    assert found["drift"].values["experts"] == ["expert_0"]
    assert "drift" not in kinds(base, [moved(base, noise(base)) for _ in range(2)])


def test_low_rank():
    base = base_model()

    def thin(change):
        return {
            name: value[:, :2] @ torch.randn(2, WIDTH).double() if value.dim() == 2 else value
            for name, value in change.items()
        }

    found = kinds(base, [moved(base, thin(noise(base))) for _ in range(3)])
    assert found["low_rank"].values["kept"] > 0.99
    assert "not_low_rank" not in found


def test_subspaces_that_overlap():
    base = base_model()
    rows = {name: torch.randn(value.shape[0], 4).double() for name, value in base.items() if value.dim() == 2}
    columns = {name: torch.randn(4, value.shape[1]).double() for name, value in base.items() if value.dim() == 2}

    def within(change):
        middle = torch.randn(4, 4).double()
        return {
            name: 1e-3 * rows[name] @ middle @ columns[name] if value.dim() == 2 else value
            for name, value in change.items()
        }

    experts = [moved(base, within(noise(base))) for _ in range(3)]
    found = kinds(base, experts, rank=4 / WIDTH)
    assert found["overlap"].values["overlap"] > 0.99 > 0.5 > found["overlap"].values["chance"]
    assert "overlap" not in kinds(base, [moved(base, noise(base)) for _ in range(3)], rank=4 / WIDTH)


def test_statistics_between_experts():
    base = base_model()
    experts = [moved(base, noise(base)) for _ in range(2)]
    experts[0][f"{BATCH_NORM}.running_mean"] = torch.full((WIDTH,), 1.0).double()
    found = kinds(base, experts)["statistics"]
    assert found.values["between"] == pytest.approx(0.25 / 1.25, rel=1e-4)
    experts[0][f"{BATCH_NORM}.running_mean"] = torch.full((WIDTH,), 0.1).double()
    assert "statistics" not in kinds(base, experts)


@pytest.mark.parametrize(("size", "fires"), [(1e-4, True), (1e-1, False)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_16_bits(size, fires, dtype):
    base = base_model()
    expert = {
        name: tensor.to(dtype) if "running" not in name else tensor
        for name, tensor in moved(base, noise(base, size)).items()
    }
    assert ("rounding" in kinds(base, [expert])) is fires
    assert "rounding" not in kinds(base, [moved(base, noise(base, size))])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_rounding_to_expect(dtype):
    weights = torch.randn(400, 400).double()
    measured = float((weights.to(dtype).double() - weights).square().sum())
    base = {"encoder.w": weights}
    analysis = measure(StateDictCheckpoint(base, "base"), [StateDictCheckpoint({"encoder.w": weights.to(dtype)}, "e")])
    assert rounding_energy(analysis.tensors[0], dtype, 0) == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.nemo", "x/b.nemo"], ["a", "b"]),
        (["x/a.nemo", "y/a.nemo"], ["x/a", "y/a"]),
        (["e/one/model", "e/two/model"], ["one/model", "two/model"]),
        (["same", "same"], ["same (0)", "same (1)"]),
    ],
)
def test_short_names(paths, names):
    assert expert_names(list(map(Path, paths))) == names


@pytest.fixture
def report(nemo_family, tmp_path):
    base, experts = nemo_family
    return analyze(base, experts, output=tmp_path / "report")


def test_the_folder_holds_page_tables_and_pictures(report):
    files = {path.name: path for path in report.output.iterdir()}
    pictures = {"norms.png", "cosines.png", "spectra.png", "signs.png", "interference.png", "tensors.png"}
    assert set(files) == {"README.md", "tensors.csv", "summary.json", *pictures}
    for name in pictures:
        content = files[name].read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) < 100_000
    text = files["README.md"].read_text()
    assert set(re.findall(r"\]\((\w+\.png)\)", text)) == pictures
    assert all(finding.text in text for finding in report.findings)
    assert "nan" not in text.lower().replace("explanation", "")
    summary = json.loads(files["summary.json"].read_text())
    assert summary == json.loads(json.dumps(report.summary))
    assert [expert["name"] for expert in summary["experts"]] == ["expert_0", "expert_1", "expert_2"]
    assert [finding["text"] for finding in summary["findings"]] == [finding.text for finding in report.findings]


def test_the_table_has_a_row_per_tensor_and_expert(nemo_family, tmp_path):
    analyze(*nemo_family, output=tmp_path / "out", pictures=False)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "tensors.csv").read_text())))
    assert list(rows[0]) == list(COLUMNS)
    base, experts = family()
    measured = [name for name in base if "preprocessor" not in name and "num_batches" not in name]
    assert [(row["tensor"], row["expert"]) for row in rows] == [
        (name, f"expert_{index}") for name in measured for index in range(3)
    ]
    for row in rows:
        expert = experts[int(row["expert"][-1])]
        delta = expert[row["tensor"]].double() - base[row["tensor"]].double()
        assert float(row["norm"]) == pytest.approx(float(delta.norm()), rel=1e-6)
        others = sum(e[row["tensor"]].double() - base[row["tensor"]].double() for e in experts if e is not expert)
        cosine = torch.nn.functional.cosine_similarity(delta.flatten(), others.flatten(), dim=0)
        assert float(row["cosine_to_others"]) == pytest.approx(float(cosine), abs=1e-6)
        assert (row["share"] == "") == ("running" in row["tensor"])
        assert (row["sti"] != "") == (row["role"] in ("matrix", "pointwise conv"))
        assert (row["top_rows"] != "") == (row["role"] == "head")
    for index in range(3):
        shares = [float(row["share"]) for row in rows if row["expert"] == f"expert_{index}" and row["share"]]
        assert sum(shares) == pytest.approx(1)


def test_the_largest_tensors_come_first(nemo_family):
    base, experts = nemo_family
    found = analyze(base, experts, top=4).summary["top_tensors"]
    shares = [row["share"] for row in found]
    assert len(found) == 4
    assert shares == sorted(shares, reverse=True)
    assert found[0]["tensor"] == "encoder.layers.0.feed_forward1.linear1.weight"


def test_the_bytes_do_not_depend_on_threads(nemo_family, tmp_path):
    base, experts = nemo_family
    for workers in (1, 3):
        analyze(base, experts, output=tmp_path / str(workers), workers=workers)
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "3" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("experts", [1, 2, 8])
def test_any_number_of_experts(experts, tmp_path):
    base, tuned = family(experts)
    sources = [write_nemo(tmp_path / f"e{index}.nemo", expert) for index, expert in enumerate(tuned)]
    report = analyze(write_nemo(tmp_path / "b.nemo", base), sources, output=tmp_path / "out")
    drawn = {path.name for path in report.output.glob("*.png")}
    assert ("cosines.png" in drawn) == ("signs.png" in drawn) == ("interference.png" in drawn) == (experts > 1)
    assert "nan" not in (tmp_path / "out" / "tensors.csv").read_text()


def test_experts_equal_to_the_base(tmp_path):
    base, _ = family()
    sources = [write_nemo(tmp_path / f"{name}.nemo", base) for name in "bxy"]
    report = analyze(sources[0], sources[1:], output=tmp_path / "out")
    assert "every merge is the base" in report.findings[0].text
    assert "No tensor changed." in (tmp_path / "out" / "README.md").read_text()


def test_models_without_blocks_or_matrices(tmp_path):
    base = {"bias": torch.randn(30), "scale": torch.randn(4)}
    sources = [write_huggingface(tmp_path / f"m{seed}", fine_tuned(base, seed)) for seed in range(3)]
    report = analyze(sources[0], sources[1:], output=tmp_path / "out")
    assert {path.name for path in report.output.glob("*.png")} == {
        "norms.png",
        "cosines.png",
        "signs.png",
        "tensors.png",
    }


def test_pictures_may_be_left_out(nemo_family, tmp_path):
    base, experts = nemo_family
    analyze(base, experts, output=tmp_path / "out", pictures=False)
    assert not list((tmp_path / "out").glob("*.png"))
    assert ".png" not in (tmp_path / "out" / "README.md").read_text()


def test_only_an_earlier_analysis_is_replaced(nemo_family, tmp_path):
    base, experts = nemo_family
    output = tmp_path / "out"
    analyze(base, experts, output=output, pictures=False)
    with pytest.raises(OutputError, match="exists already"):
        analyze(base, experts, output=output)
    analyze(base, experts[:1], output=output, pictures=False, overwrite=True)
    assert "1 expert\n" in (output / "README.md").read_text()
    for name, content in (("notes.txt", "mine"), ("summary.json", '{"format": "another"}')):
        other = tmp_path / name.partition(".")[0]
        other.mkdir()
        (other / name).write_text(content)
        with pytest.raises(OutputError, match="left alone"):
            analyze(base, experts, output=other, overwrite=True)
        assert (other / name).read_text() == content


def test_nothing_appears_when_something_fails(nemo_family, tmp_path, monkeypatch):
    base, experts = nemo_family
    before = sorted(os.listdir(tmp_path))

    def fail(*_):
        raise RuntimeError("the pen broke")

    monkeypatch.setattr("nemo_merge.reporting.analysis.pictures.pictures", fail)
    with pytest.raises(RuntimeError, match="pen"):
        analyze(base, experts, output=tmp_path / "out")
    broken = family()[0]
    broken["decoder.decoder_layers.0.bias"][0] = torch.inf
    with pytest.raises(PlanError, match="NaN or infinite"):
        analyze(base, [*experts, write_nemo(tmp_path / "inputs" / "broken.nemo", broken)], output=tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == before


def test_options_out_of_range(nemo_family, tmp_path, monkeypatch):
    base, experts = nemo_family
    for options, message in (({"top": 0}, "top=0"), ({"rank": 2}, "rank=2")):
        with pytest.raises(ConfigError, match=message):
            analyze(base, experts, **options)
    with pytest.raises(ConfigError, match="must be a list"):
        analyze(base, experts[0])
    with pytest.raises(ConfigError, match="needs a base"):
        analyze(None, experts)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"nemo-merge\[report\].*pictures=false"):
        analyze(base, experts, output=tmp_path / "out")
