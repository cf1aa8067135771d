"""Prepared corpora in NeMo: manifests, weights and tags, and a batch of its dataloader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from nemo_merge.corpora import find, find_prepared
from nemo_merge.corpora.nemo_export import export_nemo
from nemo_merge.errors import CorpusError, NemoMergeError

from . import layouts

pytest.importorskip("lhotse")
MAKERS = (layouts.lectra, layouts.fisher, layouts.talcs, layouts.speechdat, layouts.bangor_miami, layouts.mtedx)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """Six corpora in one folder."""
    folder = tmp_path_factory.mktemp("corpora")
    for make in MAKERS:
        (folder / make.__name__).mkdir()
        made = make(folder / make.__name__)
        find(made.recipe).prepare(folder / make.__name__, folder / "out", **made.options)
    return folder / "out"


@pytest.mark.parametrize(("temperature", "ratio"), [(1.0, None), (0.0, 1.0)])
def test_weights(prepared, tmp_path, temperature, ratio):
    entries = yaml.safe_load(
        export_nemo(find_prepared(prepared), tmp_path, "train", temperature=temperature).read_text()
    )
    assert sum(entry["weight"] for entry in entries) == pytest.approx(1.0, abs=1e-5)
    hours = {item.stem: item.splits["train"]["hours"] for item in find_prepared(prepared, split="train")}
    assert [entry["tags"]["corpus"] for entry in entries] == list(hours) == ["lectra", "mtedx-pt", "talcs"]
    lectra, mtedx, _ = (entry["weight"] for entry in entries)
    assert lectra / mtedx == pytest.approx(ratio or hours["lectra"] / hours["mtedx-pt"], rel=1e-3)


def test_a_manifest_goes_out_and_comes_back(prepared, tmp_path):
    export_nemo(find_prepared(prepared, corpus="mtedx-pt"), tmp_path / "nemo", "dev")
    options = {"name": "back", "language": "pt", "domain": "talks"}
    back = find("nemo_jsonl").prepare(tmp_path / "nemo" / "mtedx-pt_dev.json", tmp_path / "back", **options)["all"]
    (item,) = find_prepared(prepared, corpus="mtedx-pt")
    import lhotse

    there = lhotse.CutSet.from_file(item.path("cuts", "dev"))
    for cut, supervision in zip(there, back["supervisions"], strict=True):
        (original,) = cut.supervisions
        assert (supervision.id, supervision.text, supervision.start) == (original.id, original.text, cut.start)
        assert supervision.duration == pytest.approx(cut.duration, abs=1e-8)
        assert supervision.custom["orig_text"] == original.custom["orig_text"]
        assert supervision.speaker == original.speaker
    again = export_nemo(find_prepared(tmp_path / "back"), tmp_path / "again", "all")
    (entry,) = yaml.safe_load(again.read_text())
    rows, originals = (
        [json.loads(line) for line in Path(path).read_text().splitlines()]
        for path in (entry["manifest_filepath"], tmp_path / "nemo" / "mtedx-pt_dev.json")
    )
    ours = {"corpus": "nemo_jsonl", "variety": None}  # these are of whoever prepares it
    assert [{**row, **ours} for row in rows] == [{**row, **ours} for row in originals]


def test_errors(prepared, tmp_path):
    with pytest.raises(CorpusError, match="no corpus has the split 'dve'; there are all, dev, test, train"):
        export_nemo(find_prepared(prepared), tmp_path, "dve")
    with pytest.raises(NemoMergeError, match="temperature=-1 is negative"):
        export_nemo(find_prepared(prepared), tmp_path, "train", temperature=-1)


@pytest.mark.nemo
def test_a_batch_of_nemo_s_dataloader(prepared, tmp_path):
    """Long and short recordings, one and two channels, 8 and 16 kHz, manifests and cuts, mixed by ``input_cfg``."""
    pytest.importorskip("nemo.collections.common")
    import torch
    from nemo.collections.common.data.lhotse import get_lhotse_dataloader_from_config
    from omegaconf import OmegaConf

    class Texts(torch.utils.data.Dataset):
        def __getitem__(self, cuts):
            audio, lengths = cuts.load_audio(collate=True)
            return [(cut.domain, cut.lang, cut.supervisions[0].text) for cut in cuts], audio, lengths, cuts

    corpora = find_prepared(prepared, split="all") + find_prepared(prepared, split="train")
    paths = [export_nemo(find_prepared(prepared), tmp_path, split) for split in ("all", "train")]
    kinds = {entry["type"] for path in paths for entry in yaml.safe_load(path.read_text())}
    assert kinds == {"nemo", "lhotse"}
    settings = {
        "input_cfg": [{"type": "group", "input_cfg": str(path), "weight": 1.0} for path in paths],
        "sample_rate": 16000, "batch_size": 24, "use_lhotse": True, "shuffle": True, "num_workers": 0, "shard_seed": 0,
        "seed": 0, "use_bucketing": False, "force_finite": True, "min_duration": 0.1,
    }  # fmt: skip
    loader = get_lhotse_dataloader_from_config(OmegaConf.create(settings), global_rank=0, world_size=1, dataset=Texts())
    seen = set()
    for texts, audio, lengths, cuts in loader:
        assert audio.shape == (len(texts), int(lengths.max()))
        assert audio.dtype == torch.float32
        assert [cut.num_samples for cut in cuts] == lengths.tolist()
        seen |= set(map(tuple, texts))
    expected = {
        (item.domain, item.languages[0], row.text)
        for item in corpora
        for split in ("all", "train")
        if split in item.splits
        for row in _supervisions(item, split)
    }
    assert seen == expected


def _supervisions(item, split):
    import lhotse

    return lhotse.SupervisionSet.from_file(item.path("supervisions", split))
