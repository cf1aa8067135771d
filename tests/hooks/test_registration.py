"""What is registered works once, and can be taken back."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

import nemo_merge
from nemo_merge.errors import ConfigError
from nemo_merge.hooks import registration

pytestmark = [pytest.mark.nemo, pytest.mark.skipif(find_spec("nemo") is None, reason="NeMo is not installed")]


def state():
    """All that registering may change."""
    from nemo.collections.common.data.lhotse.cutset import KNOWN_DATA_CONFIG_TYPES
    from nemo.core.classes import ModelPT
    from nemo.core.classes.common import ALLOWED_TARGET_PREFIXES
    from nemo.lightning.callback_group import CallbackGroup

    return (
        dict(KNOWN_DATA_CONFIG_TYPES),
        ModelPT.maybe_init_from_pretrained_checkpoint,
        list(CallbackGroup.get_instance().callbacks),
        list(ALLOWED_TARGET_PREFIXES),
        ModelPT.__init__,
    )


def test_registering_twice_is_registering_once_and_can_be_undone():
    before = state()
    nemo_merge.register()
    once = state()
    nemo_merge.register()
    assert state() == once
    types, method, callbacks, prefixes, _ = once
    assert set(types) - set(before[0]) == {"nemo_merge_domain"}
    assert method is not before[1]
    assert len(callbacks) == len(before[2]) + 1
    assert prefixes == [*before[3], "nemo_merge.fusion.FusedUpstreamPreprocessor"], "merged models are of NeMo's own"
    nemo_merge.unregister()
    assert state() == before
    nemo_merge.unregister()
    assert state() == before


def test_a_wrapper_around_ours_is_left_alone(monkeypatch):
    """Another program's wrapper keeps working, and ours inside it does nothing any more."""
    from nemo.core.classes import ModelPT

    calls = []
    original = ModelPT.maybe_init_from_pretrained_checkpoint
    monkeypatch.setattr(
        ModelPT, "maybe_init_from_pretrained_checkpoint", lambda self, cfg, where="cpu": calls.append(cfg)
    )
    nemo_merge.register()
    ours = ModelPT.maybe_init_from_pretrained_checkpoint

    def theirs(self, cfg, map_location="cpu"):
        calls.append("theirs")
        ours(self, cfg, map_location)

    ModelPT.maybe_init_from_pretrained_checkpoint = theirs
    nemo_merge.unregister()
    assert ModelPT.maybe_init_from_pretrained_checkpoint is theirs
    config = {"init_from_merge": {"base": "is not read"}}
    theirs(None, config)
    assert calls == ["theirs", config]
    assert original is not ours


def test_what_was_registered_is_taken_back_when_the_rest_fails(monkeypatch):
    before = state()
    monkeypatch.setattr(registration, "_PARTS", ("data_types", "connector"))
    with pytest.raises(AttributeError):
        nemo_merge.register()
    assert state() == before


def test_without_nemo(monkeypatch):
    monkeypatch.setattr(registration, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'nemo-merge\[nemo\]'"):
        nemo_merge.register()
    registration.register_if_installed()
    assert not registration._undo
