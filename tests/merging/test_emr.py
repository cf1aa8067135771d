from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_merge import merge, merge_state_dicts, open_checkpoint
from nemo_merge.errors import CheckpointError, ConfigError, OutputError, PlanError
from nemo_merge.merging import apply_emr
from nemo_merge.tensors import NEVER_MERGED, role_of
from tests.fixtures.models import family, same, state_dict, write_nemo

PACKAGE = "m.emr.safetensors"


@pytest.fixture
def package(nemo_family, tmp_path):
    base, experts = nemo_family
    merge(base, experts, "emr", output=tmp_path / "m.nemo")
    return base, experts, tmp_path / PACKAGE


def test_one_expert_comes_back(nemo_family, tmp_path):
    base, experts = nemo_family
    merge(base, experts[:1], "emr", output=tmp_path / "m.nemo")
    apply_emr(tmp_path / PACKAGE, base, 0, tmp_path / "a.nemo")
    found, expert = dict(open_checkpoint(tmp_path / "a.nemo")), dict(open_checkpoint(experts[0]))
    for name in expert:
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(found[name], expert[name], rtol=1e-6, atol=1e-7)


def test_masks_factors_and_statistics(package):
    base, paths, file = package
    _, experts = family()
    stored, unmerged = load_file(file), dict(open_checkpoint(base))
    for index, (expert, path) in enumerate(zip(experts, paths, strict=True)):
        output = file.with_name(f"{index}.nemo")
        apply_emr(file, base, path.stem, output)
        found = dict(open_checkpoint(output))
        own = kept = 0.0
        for name, tensor in expert.items():
            if role_of(name, tuple(tensor.shape), tensor.dtype) in NEVER_MERGED:
                if "running" in name:
                    assert torch.equal(found[name], tensor)
                continue
            delta, common = tensor - unmerged[name], stored[f"unified/{name}"]
            mask = delta * common > 0
            torch.testing.assert_close((found[name] - unmerged[name]) != 0, mask)
            own += float(delta.abs().mean())
            kept += float((common * mask).abs().mean())
        assert float(stored["factors"][index]) == pytest.approx(own / kept, rel=1e-5)


def test_the_package_is_small_and_the_domain_model_near_its_expert(package):
    base, _paths, file = package
    experts, unmerged = family()[1], dict(open_checkpoint(base))
    merged = dict(open_checkpoint(file.with_name("m.nemo")))
    apply_emr(file, base, 1, file.with_name("one.nemo"))
    mine = dict(open_checkpoint(file.with_name("one.nemo")))
    name = "encoder.layers.0.feed_forward1.linear1.weight"
    assert (mine[name] - experts[1][name]).norm() < (merged[name] - experts[1][name]).norm()
    assert (mine[name] - experts[1][name]).norm() < (unmerged[name] - experts[1][name]).norm()
    masks = [tensor for key, tensor in load_file(file).items() if key.startswith("mask/0/")]
    assert sum(mask.numel() for mask in masks) < sum(tensor.numel() for tensor in unmerged.values()) / 8 + len(masks)
    record = open_checkpoint(file.with_name("one.nemo")).metadata.provenance
    assert record["emr"]["expert"] == 1


def test_mistakes(package, tmp_path):
    base, _, file = package
    output = tmp_path / "out.nemo"
    with pytest.raises(ConfigError, match="holds no expert '7'"):
        apply_emr(file, base, 7, output)
    with pytest.raises(CheckpointError, match="no such file"):
        apply_emr(tmp_path / "gone", base, 0, output)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not a package"):
        apply_emr(tmp_path / "other.safetensors", base, 0, output)
    (tmp_path / "cut").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        apply_emr(tmp_path / "cut", base, 0, output)
    other = write_nemo(tmp_path / "wide.nemo", state_dict(width=16))
    with pytest.raises(PlanError, match="does not fit"):
        apply_emr(file, other, 0, output)
    assert not output.exists()
    output.write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        apply_emr(file, base, 0, output)


def test_a_package_that_exists_is_not_overwritten_by_accident(package, nemo_family):
    base, experts, file = package
    file.with_name("m.nemo").unlink()
    before = file.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        merge(base, experts, "emr", output=file.with_name("m.nemo"))
    assert not file.with_name("m.nemo").exists()
    merge(base, experts, "emr", output=file.with_name("m.nemo"), overwrite=True)
    assert file.read_bytes() == before
    assert same(dict(open_checkpoint(file.with_name("m.nemo"))), merge_state_dicts(*family(), "emr"))
