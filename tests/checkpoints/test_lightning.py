"""Lightning checkpoints: what is read, what a merged one keeps, averaged weights, and that stock NeMo loads it."""

from __future__ import annotations

import os
import tarfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from nemo_merge import merge, merge_state_dicts, open_checkpoint
from nemo_merge.errors import CheckpointError, PlanError
from nemo_merge.merging.reproduce import reproduce
from tests.fixtures.files import lightning_content, optimizer_state, write_icefall, write_lightning, write_torch
from tests.fixtures.models import CONFIG, family, same, state_dict, write_nemo

PARAMETERS = [
    name
    for name, value in state_dict().items()
    if value.is_floating_point() and "running_" not in name and not name.startswith("preprocessor")
]


def ema_of(tensors, parameters=PARAMETERS):
    return tuple(tensors[name] + 1 for name in parameters)


def with_ema(tensors, parameters=PARAMETERS):
    return {name: value + 1 if name in parameters else value for name, value in tensors.items()}


def nemo_ema(tensors, **more):
    return {"opt": optimizer_state(tensors), "ema": ema_of(tensors), "decay": 0.999, "current_step": 5, **more}


def test_a_merged_checkpoint_keeps_what_loading_needs_and_drops_the_training(tmp_path):
    base, experts = family()
    model = OrderedDict(base)
    model._metadata = OrderedDict({"": {"version": 1}})
    extra = {"my_notes": {"author": "x"}, "state_of_a_plugin": {"big": torch.zeros(5)}}
    path = tmp_path / "base.ckpt"
    torch.save({**lightning_content(base), "state_dict": model, **extra}, path)
    merge(path, [write_lightning(tmp_path / "e.ckpt", experts[0])], "ties", output=tmp_path / "m.ckpt")
    written = torch.load(tmp_path / "m.ckpt", weights_only=False)
    assert set(written) == {
        "epoch", "global_step", "pytorch-lightning_version", "state_dict", "hparams_name", "hparams_type",
        "hyper_parameters", "my_notes", "nemo_merge",
    }  # fmt: skip
    assert same(dict(written["state_dict"]), merge_state_dicts(base, experts[:1], "ties"))
    assert written["state_dict"]._metadata == model._metadata
    assert list(written["state_dict"]) == list(base)
    assert written["hyper_parameters"] == lightning_content(base)["hyper_parameters"]
    assert type(written["hyper_parameters"]) is written["hparams_type"]
    assert written["nemo_merge"]["method"]["name"] == "ties"


def test_optimizer_states_are_never_read(tmp_path):
    """Their pages are gone from the file's end, and nobody notices."""
    base, experts = family()
    path = write_lightning(tmp_path / "base.ckpt", base)
    content = path.read_bytes()
    noise = torch.full((4096,), 7.25)
    big = write_lightning(tmp_path / "big.ckpt", experts[0], optimizer_states=[{"state": {0: {"exp_avg": noise}}}])
    data = bytearray(big.read_bytes())
    at = data.find(noise.numpy().tobytes())
    assert at > 0
    data[at : at + noise.nbytes] = os.urandom(noise.nbytes)
    big.write_bytes(data)
    merge(path, [big], "soup", output=tmp_path / "m.ckpt")
    assert (tmp_path / "m.ckpt").stat().st_size < len(content)


def test_configurations_and_classes_are_compared_with_those_of_nemo_files(tmp_path):
    base, experts = family()
    base_path = write_nemo(tmp_path / "b.nemo", base)
    config = {**CONFIG, "encoder": {**CONFIG["encoder"], "n_heads": 3}, "labels": [" ", "a", "b", "d"]}
    with pytest.raises(PlanError) as caught:
        merge(base_path, [write_lightning(tmp_path / "e.ckpt", experts[0], config)], "soup", output=tmp_path / "m.nemo")
    assert "encoder.n_heads=3" in str(caught.value)
    assert "tokenizer differs" in str(caught.value)


AVERAGES = {
    "nemo": lambda t: {"optimizer_states": [nemo_ema(t)]},
    "state_dict_ema": lambda t: {"state_dict_ema": with_ema(t)},
    "ema with module prefix": lambda t: {
        "ema": {"n_averaged": torch.tensor(3), **{f"module.{n}": v for n, v in with_ema(t).items()}}
    },
    "parameters only": lambda t: {"model_ema": {n: v for n, v in with_ema(t).items() if n in PARAMETERS}},
    "stochastic weight averaging": lambda t: {
        "callbacks": {"StochasticWeightAveraging": {"n_averaged": 3, "average_model_state": OrderedDict(with_ema(t))}}
    },
}


@pytest.mark.parametrize("kind", AVERAGES)
def test_averaged_weights(tmp_path, kind):
    tensors = state_dict()
    path = write_lightning(tmp_path / "m.ckpt", tensors, **AVERAGES[kind](tensors))
    assert same(dict(open_checkpoint(path)), tensors)
    assert same(dict(open_checkpoint(path, ema=True)), with_ema(tensors))


def test_averages_of_lightning_are_the_state_dict_itself(tmp_path):
    tensors = state_dict()
    more = {"current_model_state": with_ema(tensors), "averaging_state": {"n_averaged": torch.tensor(3)}}
    path = write_lightning(tmp_path / "m.ckpt", tensors, **more)
    assert same(dict(open_checkpoint(path)), tensors)
    assert same(dict(open_checkpoint(path, ema=True)), tensors)


def test_the_sibling_of_nemo_with_averages(tmp_path):
    tensors = state_dict()
    path = write_lightning(tmp_path / "m.ckpt", tensors)
    write_lightning(tmp_path / "m-EMA.ckpt", with_ema(tensors))
    for name in ("m.ckpt", "m-EMA.ckpt"):
        checkpoint = open_checkpoint(tmp_path / name, ema=True)
        assert same(dict(checkpoint), with_ema(tensors))
        assert checkpoint.path.name == "m-EMA.ckpt"
    assert same(dict(open_checkpoint(path)), tensors)


def test_tied_parameters_are_averaged_once(tmp_path):
    tensors = state_dict()
    owner = PARAMETERS[-1]
    tied = {**tensors, "alias": tensors[owner]}
    path = write_lightning(tmp_path / "m.ckpt", tied, optimizer_states=[nemo_ema(tensors)])
    checkpoint = open_checkpoint(path, ema=True)
    assert checkpoint.ties == {"alias": owner}
    assert torch.equal(checkpoint["alias"], tensors[owner] + 1)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, r"holds no averaged weights .*leave out ema=true"),
        (
            {"optimizer_states": [nemo_ema(state_dict(), ema=ema_of(state_dict())[:-1])]},
            r"there are 10, but the model has 11",
        ),
        ({"optimizer_states": [nemo_ema(state_dict(), ema=ema_of(state_dict())[::-1])]}, r"the shape .* stands where"),
        ({"optimizer_states": [nemo_ema(state_dict())] * 2}, "there are 2 optimizers"),
        ({"optimizer_states": [nemo_ema(state_dict(), opt={"param_groups": [{}, {}]})]}, "2 groups of parameters"),
        ({"optimizer_states": [nemo_ema(state_dict(), ema=[1.0])]}, "not a list of tensors"),
        ({"state_dict_ema": {"other": torch.ones(1)}}, "lack tensor"),
        (
            {"state_dict_ema": {n: v.flatten() for n, v in state_dict().items()}},
            r"is \[72\] instead of \[6, 1, 3, 3\]|instead of",
        ),
        ({"state_dict_ema": {**state_dict(), "more": torch.ones(1)}}, "hold tensor 'more', which the model has not"),
    ],
)
def test_averages_that_cannot_be_assigned_with_certainty(tmp_path, more, message):
    path = write_lightning(tmp_path / "m.ckpt", state_dict(), **more)
    with pytest.raises(CheckpointError, match=rf"m\.ckpt.*{message}"):
        open_checkpoint(path, ema=True)


def test_averages_of_icefall_and_as_input_of_a_merge(tmp_path):
    base, experts = family()
    average = {name: value * 2 if value.is_floating_point() else value for name, value in experts[0].items()}
    average["encoder.layers.0.conv.batch_norm.running_var"] = (
        experts[0]["encoder.layers.0.conv.batch_norm.running_var"] * 2
    )
    path = write_icefall(tmp_path / "epoch-30.pt", experts[0])
    assert same(dict(open_checkpoint(path, ema=True)), average)
    for name in list(average):
        if name.startswith("preprocessor"):
            base[name] = average[name]  # icefall's models have no such buffers, the fixture's do
    merge(write_torch(tmp_path / "b.pt", base), [{"path": path, "ema": True}], "soup", output=tmp_path / "m.pt")
    assert same(dict(open_checkpoint(tmp_path / "m.pt")), merge_state_dicts(base, [average], "soup"))


def test_the_record_tells_averages_from_last_weights(tmp_path):
    """Else an interrupted merge could go on with the wrong ones, and a record could not be repeated."""
    base, experts = family()
    paths = [
        write_lightning(tmp_path / f"{i}.ckpt", t, optimizer_states=[nemo_ema(t)])
        for i, t in enumerate((base, experts[0]))
    ]
    merge(paths[0], [{"path": paths[1], "ema": True}], "ties", output=tmp_path / "a.ckpt")
    merge(paths[0], paths[1:], "ties", output=tmp_path / "b.ckpt")
    averages, last = (open_checkpoint(tmp_path / f"{name}.ckpt").metadata.provenance for name in "ab")
    assert averages["experts"][0]["ema"] is True
    assert "ema" not in last["experts"][0]
    assert "ema:true" in averages["command"]
    assert same(dict(open_checkpoint(tmp_path / "a.ckpt")), merge_state_dicts(base, [with_ema(experts[0])], "ties"))
    assert reproduce(tmp_path / "a.ckpt").same


@pytest.fixture
def _nemo_forgets():
    """NeMo remembers where it restored a model from, and the next model of another kind would look there."""
    yield
    from nemo.utils.app_state import AppState

    AppState().model_restore_path = None


@pytest.mark.nemo
@pytest.mark.slow
@pytest.mark.usefixtures("_nemo_forgets")
def test_stock_nemo_loads_a_merged_checkpoint(tmp_path):
    """Written by Lightning's own Trainer for a real model, with an optimizer and NeMo's averages."""
    import lightning.pytorch as pl
    from nemo.collections.asr.models import EncDecCTCModel
    from nemo.collections.common.callbacks.ema import EMAOptimizer
    from nemo.core.connectors.save_restore_connector import SaveRestoreConnector

    from tests.fixtures import nemo_models

    def save(model, path: Path) -> dict[str, torch.Tensor]:
        """Saves after one step of Adam under NeMo's averaging; gives the averages by name."""
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        optimizer = EMAOptimizer(torch.optim.AdamW(model.parameters(), lr=1e-2), torch.device("cpu"), decay=0.5)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        optimizer.join()
        trainer.strategy.connect(model)
        trainer.strategy.optimizers = [optimizer]
        trainer.save_checkpoint(path)
        return {name: value for (name, _), value in zip(model.named_parameters(), optimizer.ema_params, strict=True)}

    states, averages = [], []
    for seed in range(3):
        model = nemo_models.ctc(seed=0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * seed * torch.randn_like(parameter))
        averages.append(save(model, tmp_path / f"{seed}.ckpt"))
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    paths = [tmp_path / f"{seed}.ckpt" for seed in range(3)]
    for path, state, average in zip(paths, states, averages, strict=True):
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.format == "lightning"
            assert same(dict(checkpoint), state)
            assert checkpoint.metadata.model_class.endswith("EncDecCTCModel")
            assert checkpoint.metadata.config["encoder"]["d_model"] == nemo_models.WIDTH
        with open_checkpoint(path, ema=True) as checkpoint:
            assert same(dict(checkpoint), {**state, **{n: v.detach() for n, v in average.items()}})
            assert not torch.equal(
                checkpoint["decoder.decoder_layers.0.weight"], state["decoder.decoder_layers.0.weight"]
            )
    merge(paths[0], paths[1:], "ties", output=tmp_path / "merged.ckpt")
    restored = EncDecCTCModel.load_from_checkpoint(tmp_path / "merged.ckpt", map_location="cpu")
    assert same(dict(restored.state_dict()), merge_state_dicts(states[0], states[1:], "ties"))
    # The same experts merge into a .nemo, when the base is one.
    nemo_models.ctc(seed=0).save_to(str(tmp_path / "base.nemo"))
    merge(tmp_path / "base.nemo", paths[1:], "soup", output=tmp_path / "merged.nemo")
    restored = EncDecCTCModel.restore_from(str(tmp_path / "merged.nemo"), map_location="cpu")
    base = {name: value for name, value in open_checkpoint(tmp_path / "base.nemo").items()}
    assert same(dict(restored.state_dict()), merge_state_dicts(base, states[1:], "soup"))
    # And into an unpacked one, which NeMo restores from its folder.
    folder = tmp_path / "unpacked"
    with tarfile.open(tmp_path / "base.nemo") as tar:
        tar.extractall(folder, filter="data")
    merge(folder, paths[1:], "soup", output=tmp_path / "merged folder")
    connector = SaveRestoreConnector()
    connector.model_extracted_dir = str(tmp_path / "merged folder")
    restored = EncDecCTCModel.restore_from(
        str(tmp_path / "merged folder"), map_location="cpu", save_restore_connector=connector
    )
    assert same(dict(restored.state_dict()), merge_state_dicts(base, states[1:], "soup"))
