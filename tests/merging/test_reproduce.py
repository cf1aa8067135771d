"""Repeating a merge from its record."""

from __future__ import annotations

import shutil
import sys

import pytest
import yaml
from click.testing import CliRunner

from nemo_merge import merge, open_checkpoint
from nemo_merge.cli import cli
from nemo_merge.errors import CheckpointError, PlanError
from nemo_merge.merging.reproduce import reproduce
from nemo_merge.methods import get, names
from tests.fixtures.models import family, write_huggingface, write_nemo


@pytest.mark.parametrize("method", [name for name in names() if not get(name).uses_posteriors])
def test_every_method_repeats_to_the_byte(method, nemo_family, tmp_path):
    base, experts = nemo_family
    count = get(method).maximum_experts or len(experts)
    merge(base, experts[:count], method, output=tmp_path / "m.nemo")
    result = reproduce(tmp_path / "m.nemo", workers=1)
    assert result.same_bytes
    assert str(result).endswith("every byte is the same")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


SETTINGS = {
    "rules": {
        "rules": [
            {
                "match": r"""layers\.0\.self|it's|"\\quoted\"|\\""",
                "method": {"name": "ties", "density": 0.5},
                "scale": 0.5,
            },
            {"group": "head", "method": "base"},
            {"group": "encoder", "weights": [[0, 1], 1, 0.5]},
        ]
    },
    "then": {"then": ["lines", {"name": "subspace_boost", "beta": 0.1}]},
    "weights and type": {"weights": [1, 2, -0.5], "scale": 0.25, "dtype": "bfloat16"},
    "statistics": {"batch_norm": "pooled"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("way", ["reproduce", "command"])
def test_every_setting_is_recorded(settings, way, nemo_family, tmp_path, monkeypatch):
    base, experts = nemo_family
    report = merge(base, experts, "tsvm", output=tmp_path / "m.nemo", **settings)
    if way == "reproduce":
        assert reproduce(tmp_path / "m.nemo").same_bytes
        return
    import shlex

    *words, last = shlex.split(report.provenance["command"])
    assert last == "output=OUTPUT"
    result = CliRunner().invoke(cli, [*words[1:], f"output={tmp_path / 'again.nemo'}"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "again.nemo").read_bytes() == (tmp_path / "m.nemo").read_bytes()


@pytest.mark.parametrize("name", ["merged", "merged/merge.yaml"])
def test_a_folder(tmp_path, name):
    base, experts = family()
    paths = [write_huggingface(tmp_path / f"{i}", model, shards=2) for i, model in enumerate((base, *experts))]
    merge(paths[0], paths[1:], "ties", output=tmp_path / "merged")
    assert reproduce(tmp_path / name).same_bytes


def test_inputs_that_moved_are_found_and_changed_ones_refused(nemo_family, tmp_path):
    base, experts = nemo_family
    merge(base, experts, "soup", output=tmp_path / "m.nemo")
    elsewhere = tmp_path / "elsewhere"
    shutil.move(experts[0].parent, elsewhere)
    with pytest.raises(CheckpointError, match=r"base.nemo: not found.*--inputs"):
        reproduce(tmp_path / "m.nemo")
    assert reproduce(tmp_path / "m.nemo.merge.yaml", inputs=[elsewhere]).same_bytes
    shutil.copy(elsewhere / experts[1].name, elsewhere / experts[0].name)
    with pytest.raises(PlanError, match=rf"{experts[0].name}: is not the file that .*m.nemo was merged from"):
        reproduce(tmp_path / "m.nemo", inputs=[elsewhere])


def test_what_carries_no_record(nemo_family):
    with pytest.raises(CheckpointError, match=r"carries no record of a merge, and there is no base.nemo.merge.yaml"):
        reproduce(nemo_family[0])


@pytest.mark.parametrize("changed", ["a tensor", "the configuration"])
def test_differences_are_told(nemo_family, tmp_path, changed):
    base, experts = nemo_family
    merge(base, experts, "soup", output=tmp_path / "m.nemo")
    with open_checkpoint(tmp_path / "m.nemo") as checkpoint:
        tensors = {name: tensor.clone() for name, tensor in checkpoint.items()}
        config = dict(checkpoint.metadata.config)
    if changed == "a tensor":
        tensors["decoder.decoder_layers.0.bias"][0] += 1
    else:
        config["nemo_merge"]["versions"]["torch"] = "1.0"
    write_nemo(tmp_path / "m.nemo", tensors, config)
    result = CliRunner().invoke(cli, ["reproduce", str(tmp_path / "m.nemo")])
    if changed == "a tensor":
        assert result.exit_code == 1
        assert "1 tensors differ, the first is 'decoder.decoder_layers.0.bias'" in result.output
    else:
        assert result.exit_code == 0
        assert "every tensor is the same to the bit, other parts" in result.output
        assert "torch 1.0, now" in result.output


def test_the_record_and_the_card_stand_beside_the_file(nemo_family, tmp_path):
    base, experts = nemo_family
    merge(base, experts, "ties", weights=[1, 2, 3], output=tmp_path / "m.nemo", rules=[{"group": "head", "scale": 0.5}])
    with open_checkpoint(tmp_path / "m.nemo") as checkpoint:
        record = checkpoint.metadata.provenance
    assert yaml.safe_load((tmp_path / "m.nemo.merge.yaml").read_text()) == record
    assert record["decisions"]["method: rule 1 (group=head)"] == [
        "decoder.decoder_layers.0.weight",
        "decoder.decoder_layers.0.bias",
    ]
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    card = (tmp_path / "m.nemo.README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "nemo"
    assert "merge" in front["tags"]
    for expert in record["experts"]:
        assert expert["path"] in card
        assert next(iter(expert["sha256"].values()))[:16] in card
    assert "nemo-merge reproduce m.nemo" in card


def test_the_card_of_a_folder_names_licence_and_languages(tmp_path):
    base, experts = family(2)
    paths = [
        write_huggingface(tmp_path / f"{index}", model, {"_name_or_path": f"org/model-{index}"})
        for index, model in enumerate((base, *experts))
    ]
    for path, language in zip(paths, ["en", "pt", ["es", "pt"]], strict=True):
        (path / "README.md").write_text("---\n" + yaml.safe_dump({"license": "mit", "language": language}) + "---\nx\n")
    merge(paths[0], paths[1:], "soup", output=tmp_path / "merged")
    front = yaml.safe_load((tmp_path / "merged" / "README.md").read_text().split("---\n")[1])
    assert front["license"] == "mit"
    assert front["language"] == ["en", "es", "pt"]
    assert front["base_model"] == ["org/model-0", "org/model-1", "org/model-2"]
    assert front["library_name"] == "transformers"
    (paths[1] / "README.md").write_text("---\nlicense: [\n---\n")  # not YAML: as if there were none
    merge(paths[0], paths[1:], "soup", output=tmp_path / "merged", overwrite=True)
    front = yaml.safe_load((tmp_path / "merged" / "README.md").read_text().split("---\n")[1])
    assert "license" not in front
