"""Training that starts from a merge has exactly the merge's weights, where it is asked to."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
import yaml

from nemo_merge import merge, open_checkpoint
from nemo_merge.errors import ConfigError, MergeError, PlanError
from nemo_merge.hooks import init_from_merge
from tests.fixtures import nemo_models
from tests.fixtures.nemo_models import LABELS

pytestmark = [pytest.mark.nemo, pytest.mark.skipif(find_spec("nemo") is None, reason="NeMo is not installed")]


@pytest.fixture(scope="module")
def merged(characters, tmp_path_factory):
    output = tmp_path_factory.mktemp("merged") / "merged.nemo"
    merge(characters.base, characters.experts, "ties", density=0.3, output=output)
    with open_checkpoint(output) as checkpoint:
        return output, {name: value.clone() for name, value in checkpoint.items()}


def request(family, **more):
    return {"base": str(family.base), "experts": family.words, "method": {"name": "ties", "density": 0.3}, **more}


def initialise(model, **config):
    from omegaconf import OmegaConf

    model.maybe_init_from_pretrained_checkpoint(OmegaConf.create({"name": "run", "model": {}, **config}))
    return model


@pytest.mark.parametrize("form", ["mapping", "file"])
def test_the_whole_merge(characters, merged, registered, tmp_path, form):
    wanted = request(characters)
    if form == "file":
        (tmp_path / "merge.yaml").write_text(yaml.safe_dump(wanted))
        wanted = str(tmp_path / "merge.yaml")
    model = initialise(nemo_models.ctc(seed=5), init_from_merge=wanted)
    for name, value in model.state_dict().items():
        assert torch.equal(value, merged[1][name]), name
    (start,) = model.cfg.nemo_merge.started_from
    assert (start.how, start.merged_from.method.name) == ("init_from_merge", "ties")
    assert "decisions" not in start.merged_from


@pytest.mark.parametrize(
    "parts", [{"include": ["encoder"]}, {"exclude": ["decoder"]}, {"include": ["encoder"], "exclude": ["layers.0"]}]
)
def test_a_part_of_it_as_nemo_chooses_parts(characters, merged, registered, parts):
    """The same tensors as ``init_from_nemo_model`` takes from the merged file."""
    ours = initialise(nemo_models.ctc(seed=5), init_from_merge=request(characters, **parts))
    theirs = initialise(nemo_models.ctc(seed=5), init_from_nemo_model={"one": {"path": str(merged[0]), **parts}})
    fresh = nemo_models.ctc(seed=5).state_dict()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    changed = [name for name, value in fresh.items() if not torch.equal(ours.state_dict()[name], value)]
    assert changed
    assert len(changed) < len(fresh)
    (start,), (other,) = ours.cfg.nemo_merge.started_from, theirs.cfg.nemo_merge.started_from
    assert {key: list(start[key]) for key in parts} == parts == {key: list(other[key]) for key in parts}
    assert (other.how, other.path, other.merged_from.method.name) == ("init_from_nemo_model", str(merged[0]), "ties")


def test_any_module(characters, merged):
    """Without NeMo's method and its configuration, and with nothing registered."""
    encoder = nemo_models.ctc(seed=5)
    shell = torch.nn.Module()
    shell.encoder = encoder.encoder
    loaded = init_from_merge(shell, request(characters), include=["encoder."])
    assert set(loaded) == set(shell.state_dict())
    for name, value in shell.state_dict().items():
        assert torch.equal(value, merged[1][name]), name


def test_other_starts_are_left_to_nemo(characters, merged, registered):
    for config in ({}, {"init_from_merge": None}, {"init_from_nemo_model": str(characters.base)}):
        model = initialise(nemo_models.ctc(seed=5), **config)
        assert "nemo_merge" not in model.cfg
    with open_checkpoint(characters.base) as base:
        assert all(torch.equal(value, base[name]) for name, value in model.state_dict().items())
    model = initialise(nemo_models.ctc(seed=5), init_from_nemo_model=str(merged[0]))
    assert all(torch.equal(value, merged[1][name]) for name, value in model.state_dict().items())
    assert model.cfg.nemo_merge.started_from[0].path == str(merged[0])


def test_ranks_other_than_the_first_wait_for_their_weights(characters, registered, monkeypatch):
    """As NeMo does it: data parallel training sends the first one's."""
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    before = nemo_models.ctc(seed=5).state_dict()
    after = initialise(nemo_models.ctc(seed=5), init_from_merge=request(characters)).state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_events_of_nemo(characters, registered, monkeypatch):
    from nemo.lightning.base_callback import BaseCallback
    from nemo.lightning.callback_group import CallbackGroup

    seen = []

    class Listener(BaseCallback):
        def on_load_checkpoint_start(self, *args, **kwargs):
            seen.append("start")

        def on_load_checkpoint_end(self, *args, **kwargs):
            seen.append("end")

    group = CallbackGroup.get_instance()
    monkeypatch.setattr(group, "_callbacks", [*group.callbacks, Listener()])
    initialise(nemo_models.ctc(), init_from_merge=request(characters))
    assert seen == ["start", "end"]


@pytest.mark.parametrize(
    ("more", "error", "problem"),
    [
        ({"metod": "ties"}, ConfigError, "init_from_merge: there is no setting 'metod'"),
        ({"include": 3}, ConfigError, "init_from_merge: include=3 is not a list"),
        ({"include": ["encodr"]}, MergeError, "no tensor of the merge is one of the model's"),
        ({"experts": []}, ConfigError, "init_from_merge: experts are missing"),
    ],
)
def test_mistakes(characters, registered, more, error, problem):
    model = nemo_models.ctc(seed=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=problem):
        initialise(model, init_from_merge=request(characters, **more))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_cannot_be(characters, registered):
    with pytest.raises(ConfigError, match="init_from_merge and init_from_nemo_model both"):
        initialise(nemo_models.ctc(), init_from_merge=request(characters), init_from_nemo_model=str(characters.base))
    with pytest.raises(ConfigError, match="neither a YAML file nor a mapping"):
        initialise(nemo_models.ctc(), init_from_merge=["a.nemo"])
    with pytest.raises(ConfigError, match=r"nowhere.yaml: no such file"):
        initialise(nemo_models.ctc(), init_from_merge="nowhere.yaml")
    other = nemo_models.ctc(labels=[*LABELS, "ç"])
    with pytest.raises(MergeError, match=r"2 tensors have other shapes .*exclude: \[decoder\]"):
        initialise(other, init_from_merge=request(characters))
    initialise(other, init_from_merge=request(characters, exclude=["decoder"]))
    with pytest.raises(PlanError, match="needs a base"):
        initialise(nemo_models.ctc(), init_from_merge={"experts": characters.words, "method": "ties"})
