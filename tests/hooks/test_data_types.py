"""Domains by name in NeMo's data configuration give the cuts of NeMo's own types."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from nemo_merge.errors import ConfigError

soundfile = pytest.importorskip("soundfile")
from tests.fixtures.audio import write_audio, write_manifest  # noqa: E402

pytestmark = [pytest.mark.nemo, pytest.mark.skipif(find_spec("nemo") is None, reason="NeMo is not installed")]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A corpus with cuts of one domain and NeMo lines of another."""
    from lhotse import CutSet, Recording, SupervisionSegment

    folder = tmp_path_factory.mktemp("corpus")
    files = write_audio(folder / "audio", count=6)
    cuts = []
    for file in files[:4]:
        cut = Recording.from_file(file).to_cut()
        cut.supervisions = [
            SupervisionSegment(cut.id, cut.recording_id, 0.0, cut.duration, text="bom dia", language="pt")
        ]
        cuts.append(cut)
    (folder / "cuts").mkdir()
    CutSet.from_cuts(cuts).to_file(folder / "cuts" / "ep-mini-telephone_cuts_train.jsonl.gz")
    (folder / "parliament").mkdir()
    write_manifest(folder / "parliament" / "train.json", files[4:], text="a todos", lang="pt")
    return folder


def entry(root, domain, **more):
    return {
        "type": "nemo_merge_domain", "corpus": "ep_mini", "domain": domain, "split": "train", "root": str(root), **more
    }  # fmt: skip


def read(*entries, **more):
    from nemo.collections.common.data.lhotse.cutset import read_cutset_from_config
    from omegaconf import OmegaConf

    cuts, tarred = read_cutset_from_config(OmegaConf.create({"input_cfg": list(entries), "force_finite": True, **more}))
    assert not tarred
    return list(cuts)


def test_the_same_cuts_as_by_the_types_of_nemo(root, registered):
    ours = read(entry(root, "telephone"))
    theirs = read({"type": "lhotse", "cuts_path": str(root / "cuts" / "ep-mini-telephone_cuts_train.jsonl.gz")})
    assert [cut.id for cut in ours] == [cut.id for cut in theirs]
    assert {(cut.corpus, cut.domain, cut.supervisions[0].text) for cut in ours} == {("ep_mini", "telephone", "bom dia")}
    assert ours[0].load_audio().shape == theirs[0].load_audio().shape
    lines = read(entry(root, "parliament"))
    assert [cut.supervisions[0].text for cut in lines] == ["a todos"] * 2
    assert {cut.domain for cut in lines} == {"parliament"}


def test_weights_tags_and_settings_from_above(root, registered):
    """Tags of the entry win over the names of corpus and domain, and what the loader hands down arrives."""
    mixed = read(
        entry(root, "telephone", weight=0.6, tags={"task": "asr", "domain": "mine"}),
        {"type": "group", "weight": 0.4, "tags": {"task": "other"}, "input_cfg": [entry(root, "parliament")]},
        shard_seed=0,
        lang_field="lang",
    )
    assert sorted((cut.task, cut.domain, cut.supervisions[0].language) for cut in mixed) == [
        *[("asr", "mine", "pt")] * 4,
        *[("other", "parliament", "pt")] * 2,
    ]


def test_what_is_missing_is_named(root, registered):
    with pytest.raises(ConfigError, match="no domain 'telefone'; did you mean 'telephone'"):
        read(entry(root, "telefone"))
    with pytest.raises(ConfigError, match="'telephone' has no split 'dev', only train"):
        read(entry(root, "telephone", split="dev"))
    with pytest.raises(ConfigError, match="type nemo_merge_domain has no split, root"):
        read({"type": "nemo_merge_domain", "corpus": "ep_mini", "domain": "telephone"})


def test_the_type_is_unknown_otherwise(root):
    with pytest.raises(AssertionError, match="nemo_merge_domain"):
        read(entry(root, "telephone"))
