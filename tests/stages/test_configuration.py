"""Configurations of recipes: one that is like another, and changes on the command line."""

from __future__ import annotations

import pytest

from nemo_merge.errors import ConfigError
from nemo_merge.stages.__main__ import _settings

BASE = """
corpus:
  general: {train: 4, dev: 1, test: 1}
  telephone: {train: 2, dev: 1, test: 1}
  never: null
merge:
  methods:
    soup: {}
    ties: {density: 0.2}
    never: null
"""


@pytest.fixture
def configurations(tmp_path):
    """``base.yaml``; ``like.yaml``, which takes an entry of each kind out; ``back.yaml``, which is like that."""
    likes = {
        "like": ("base", "corpus: {telephone: null}\nmerge: {methods: {ties: null, tsvm: {}}}\n"),
        "back": ("like", "corpus: {telephone: {train: 9}}\nmerge: {methods: {ties: {scale: 2}, soup: null}}\n"),
    }
    (tmp_path / "base.yaml").write_text(BASE)
    for name, (other, text) in likes.items():
        (tmp_path / f"{name}.yaml").write_text(f"like: {other}.yaml\n{text}")
    return tmp_path


TELEPHONE = {"train": 2, "dev": 1, "test": 1}


@pytest.mark.parametrize(
    ("name", "overrides", "telephone", "merges"),
    [
        ("base", (), TELEPHONE, {"soup": {}, "ties": {"density": 0.2}}),
        ("base", ("merge.methods.ties=null", "corpus.telephone=null"), None, {"soup": {}}),
        ("base", ("merge.methods.ties=",), TELEPHONE, {"soup": {}}),
        ("base", ("merge.methods.tsvm={}",), TELEPHONE, {"soup": {}, "ties": {"density": 0.2}, "tsvm": {}}),
        ("base", ("merge.methods.ties.density=null",), TELEPHONE, {"soup": {}, "ties": {"density": None}}),
        ("like", (), None, {"soup": {}, "tsvm": {}}),
        ("like", ("merge.methods.tsvm=null", "merge.methods.ties={}"), None, {"soup": {}, "ties": {}}),
        ("back", (), {"train": 9}, {"ties": {"scale": 2}, "tsvm": {}}),
    ],
)
def test_null_takes_a_merge_or_a_set_out_wherever_it_stands(configurations, name, overrides, telephone, merges):
    settings = _settings(configurations / f"{name}.yaml", overrides)
    assert settings["merge"]["methods"] == merges
    assert settings["corpus"].get("telephone") == telephone
    assert "never" not in settings["corpus"]


def test_null_takes_an_encoder_or_a_task_out(tmp_path):
    (tmp_path / "fusion.yaml").write_text("upstreams: {a: {nemo: a.nemo}, b: {nemo: b.nemo}}\ntasks: {x: {}, y: {}}\n")
    settings = _settings(tmp_path / "fusion.yaml", ("upstreams.a=null", "tasks.y=null"))
    assert (list(settings["upstreams"]), list(settings["tasks"])) == (["b"], ["x"])


def test_sets_are_replaced_as_a_whole_and_their_numbers_one_by_one(configurations):
    (configurations / "own.yaml").write_text(
        "like: base.yaml\ncorpus:\n  telephone: {cuts: {test: t.jsonl}}\n  general: {test: 7}\n"
    )
    corpus = _settings(configurations / "own.yaml", ())["corpus"]
    assert corpus == {"telephone": {"cuts": {"test": "t.jsonl"}}, "general": {"train": 4, "dev": 1, "test": 7}}


def test_a_setting_that_does_not_exist_is_refused(configurations):
    with pytest.raises(ConfigError, match="has no setting 'corpsu'; did you mean 'corpus'"):
        _settings(configurations / "base.yaml", ("corpsu.telephone=null",))
