"""NeMo's own adapters: read without executing anything, merged tensor by tensor, restored and used by stock NeMo."""

from __future__ import annotations

import pytest
import torch

from nemo_merge import merge, open_checkpoint
from nemo_merge.checkpoints import NemoAdapterCheckpoint
from nemo_merge.errors import PlanError
from tests.fixtures import models

pytestmark = [pytest.mark.nemo, pytest.mark.slow]

NAME = "encoder.layers.1.adapter_layer.dom.module.3.weight"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A base, three models with an adapter ``dom`` (the third also with changed weights), each as .pt and .nemo."""
    from nemo.collections.common.parts.adapter_modules import LinearAdapterConfig

    from tests.fixtures import nemo_models

    folder = tmp_path_factory.mktemp("adapters")
    nemo_models.ctc(0).save_to(str(folder / "base.nemo"))

    def adapted(seed, name="dom", dim=4):
        model = restore(folder / "base.nemo", adapters=True)
        model.add_adapter(name, LinearAdapterConfig(in_features=nemo_models.WIDTH, dim=dim))
        generator = torch.Generator().manual_seed(seed)
        for tensor, parameter in model.named_parameters():
            if "adapter_layer" in tensor:
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        return model

    for seed in range(3):
        model = adapted(seed)
        model.save_adapters(str(folder / f"{seed}.pt"))
        if seed == 2:
            for parameter in model.parameters():
                parameter.data += 0.01
        model.save_to(str(folder / f"{seed}.nemo"))
    adapted(0, "other").save_adapters(str(folder / "other.pt"))
    adapted(0, dim=3).save_adapters(str(folder / "narrow.pt"))
    return folder


def restore(path, adapters=False):
    from nemo.collections.asr.models import EncDecCTCModel
    from omegaconf import open_dict

    config = None
    if adapters:
        config = EncDecCTCModel.restore_from(str(path), return_config=True)
        with open_dict(config):
            config.encoder._target_ = "nemo.collections.asr.modules.conformer_encoder.ConformerEncoderAdapter"
    return EncDecCTCModel.restore_from(str(path), override_config_path=config, map_location="cpu").eval()


def output_of(model):
    signal = torch.sin(torch.arange(16000) / 20)[None]
    with torch.no_grad():
        return model(input_signal=signal, input_signal_length=torch.tensor([16000]))[0]


def test_the_file_is_read_without_its_classes(files):
    adapter = open_checkpoint(files / "0.pt")
    assert isinstance(adapter, NemoAdapterCheckpoint)
    assert adapter.adapters["dom"]["dim"] == 4
    assert adapter.details == {"adapter": {"dom": "nemo.collections.common.parts.adapter_modules.LinearAdapter"}}
    expected = torch.load(files / "0.pt", weights_only=False)["dom"][1]["dom.module.3.weight"]
    assert torch.equal(adapter[NAME], expected)


@pytest.mark.parametrize("kind", ["pt", "nemo"])
def test_merged_adapters_are_restored_enabled_and_transcribe(files, tmp_path, kind):
    report = merge(
        files / "base.nemo", [files / f"0.{kind}", files / f"1.{kind}"], "tsvm", output=tmp_path / "out.nemo"
    )
    model = restore(tmp_path / "out.nemo")
    assert model.get_enabled_adapters() == ["dom"]
    experts = [open_checkpoint(files / f"{seed}.pt") for seed in range(2)]
    state = model.state_dict()
    for name in experts[0]:
        torch.testing.assert_close(state[name], (experts[0][name] + experts[1][name]) / 2)
    for name, tensor in restore(files / "base.nemo").state_dict().items():
        assert torch.equal(state[name], tensor)
    with_adapter = output_of(model)
    model.set_enabled_adapters(enabled=False)
    assert not torch.allclose(with_adapter, output_of(model))
    torch.testing.assert_close(output_of(model), output_of(restore(files / "base.nemo")))
    model.set_enabled_adapters(enabled=True)
    (heard,) = model.transcribe([torch.sin(torch.arange(16000) / 20).numpy()], verbose=False)
    assert isinstance(heard.text, str)
    assert report.tensors["average"]
    assert report.provenance["experts"][0]["path"] == str(files / f"0.{kind}")


def test_one_adapter_comes_back(files, tmp_path):
    merge(files / "base.nemo", [files / "0.pt"], "soup", output=tmp_path / "out.nemo")
    torch.testing.assert_close(output_of(restore(tmp_path / "out.nemo")), output_of(restore(files / "0.nemo")))


def test_weights_and_experts_without_the_adapter(files, tmp_path):
    """The third model also changed the base's weights; the base itself stands for an expert without adapters."""
    experts = [files / "1.nemo", files / "2.nemo", files / "base.nemo"]
    merge(
        files / "base.nemo",
        experts,
        "task_arithmetic",
        weights=(1.0, 3.0, 0.0),
        scale=0.25,
        output=tmp_path / "out.nemo",
    )
    with open_checkpoint(tmp_path / "out.nemo") as merged, open_checkpoint(files / "base.nemo") as base:
        one, two = open_checkpoint(files / "1.pt"), open_checkpoint(files / "2.nemo")
        torch.testing.assert_close(merged[NAME], 0.25 * one[NAME] + 0.75 * two[NAME])
        name = "encoder.layers.0.feed_forward1.linear1.weight"
        torch.testing.assert_close(merged[name], base[name] + 0.75 * (two[name] - base[name]))


def test_a_base_with_the_adapter_is_its_origin(files, tmp_path):
    """Adapters trained on from one of the base are weights like others: the method merges them."""
    experts = [files / "0.pt", files / "1.nemo"]
    report = merge(files / "0.nemo", experts, "task_arithmetic", scale=2.0, output=tmp_path / "out.nemo")
    assert "average" not in report.tensors or not any("matrix" in roles for roles in report.tensors["average"])
    with open_checkpoint(tmp_path / "out.nemo") as merged:
        zero, one = (open_checkpoint(files / f"{seed}.pt") for seed in range(2))
        torch.testing.assert_close(merged[NAME], zero[NAME] + 2 * (one[NAME] - zero[NAME]))


def test_adapters_that_do_not_fit_are_refused(files, tmp_path):
    with pytest.raises(PlanError, match=r"adapters are merged by name.*other.pt: other"):
        merge(files / "base.nemo", [files / "0.pt", files / "other.pt"], "soup", output=tmp_path / "out.nemo")
    with pytest.raises(PlanError, match=r"narrow.pt: its adapter 'dom' has other settings"):
        merge(files / "base.nemo", [files / "0.pt", files / "narrow.pt"], "soup", output=tmp_path / "out.nemo")
    with pytest.raises(PlanError, match=r"0.pt: is an adapter.*pass it with base="):
        merge(None, [files / "0.pt"], "soup", output=tmp_path / "out.nemo")
    other = models.write_nemo(tmp_path / "other.nemo", models.state_dict())
    with pytest.raises(PlanError, match=r"adapts 2 layers, but .* has 1"):
        merge(other, [files / "0.pt"], "soup", output=tmp_path / "out.nemo")
    torch.save({"x": torch.ones(1)}, tmp_path / "x.pt")  # a model of its own, not an adapter
    with pytest.raises(PlanError, match=r"x.pt: tensors .* are missing"):
        merge(files / "base.nemo", [tmp_path / "x.pt"], "soup", output=tmp_path / "out.nemo")
    assert not (tmp_path / "out.nemo").exists()
