"""Manifests are found by the names that preparation gives them, and what is missing is explained."""

from __future__ import annotations

import json

import pytest

from nemo_merge.corpora.domains import find_manifest, is_cuts
from nemo_merge.corpora.prepared import summary_head
from nemo_merge.errors import ConfigError


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        ("cuts/ep-mini-read_news_cuts_train.jsonl.gz", True),
        ("ep-mini-read_news_cuts_train.jsonl.gz", True),
        ("manifests/ep-mini-read_news_train.json", False),
        ("ep-mini-read_news_train.json", False),
        ("read_news/train.jsonl.gz", True),
        ("read_news/train.json", False),
        ("read_news/train.jsonl", False),
    ],
)
def test_every_place_is_found_and_listed(tmp_path, name, cuts):
    path = touch(tmp_path / name)
    found = find_manifest(tmp_path, "ep_mini", "read_news", "train")
    assert found == path
    assert is_cuts(found) is cuts
    with pytest.raises(ConfigError, match="'read_news' has no split 'test', only train"):
        find_manifest(tmp_path, "ep_mini", "read_news", "test")
    with pytest.raises(ConfigError, match="no domain 'read_new'; did you mean 'read_news'"):
        find_manifest(tmp_path, "ep_mini", "read_new", "train")


def test_the_first_place_counts(tmp_path):
    touch(tmp_path / "manifests" / "ep-mini-telephone_train.json")
    cuts = touch(tmp_path / "cuts" / "ep-mini-telephone_cuts_train.jsonl.gz")
    assert find_manifest(tmp_path, "ep_mini", "telephone", "train") == cuts


def test_what_there_is_when_the_domain_is_missing(tmp_path):
    for kind in ("recordings", "supervisions"):
        touch(tmp_path / "manifests" / f"ep-mini-telephone_{kind}_train.jsonl.gz")
    with pytest.raises(ConfigError, match="corpus 'ep_mini': no manifests like ep-mini-DOMAIN_cuts_SPLIT"):
        find_manifest(tmp_path, "ep_mini", "telephone", "train")
    for domain in ("telephone", "parliament"):
        touch(tmp_path / "manifests" / f"ep-mini-{domain}_dev.json")
    with pytest.raises(ConfigError, match="no domain 'xyz'; known: parliament, telephone"):
        find_manifest(tmp_path, "ep_mini", "xyz", "train")
    with pytest.raises(ConfigError, match="no such folder"):
        find_manifest(tmp_path / "nowhere", "ep_mini", "telephone", "train")


def test_prepared_corpora_are_found_by_their_domain(tmp_path):
    summary = {"corpus": "kaldi", "domain": "lectures", "languages": ["pt-PT"], "splits": {"train": {}, "dev": {}}}
    (tmp_path / "kaldi").mkdir()
    (tmp_path / "kaldi" / "mine.json").write_text(json.dumps({**summary_head(), **summary}))
    wanted = tmp_path / "kaldi" / "mine_cuts_dev.jsonl.gz"
    assert find_manifest(tmp_path, "mine", "lectures", "dev") == wanted
    assert find_manifest(tmp_path, "kaldi", "lectures", "dev") == wanted
    with pytest.raises(ConfigError, match="'lectures' has no split 'test', only dev, train"):
        find_manifest(tmp_path, "mine", "lectures", "test")
    with pytest.raises(ConfigError, match="no domain 'lecture'; did you mean 'lectures'"):
        find_manifest(tmp_path, "mine", "lecture", "dev")
