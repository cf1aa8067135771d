"""Sets of speech in a recipe's configuration, and stages 0 to 2 on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_merge.errors import ConfigError, NemoMergeError
from nemo_merge.stages.data import LeakError, cuts_path, speech_sets
from nemo_merge.stages.engine import Context, StageError, run
from nemo_merge.stages.recipes import MERGE
from nemo_merge.stages.sets import SpeechSets

from ..corpora import layouts

DATA = MERGE[:3]


def context(folder: Path, corpus: dict[str, Any]) -> Context:
    return Context({"seed": 0, "corpus": corpus}, folder / "data", folder / "exp", _console=lambda line: None)


def texts(context: Context, name: str, split: str) -> list[str]:
    from lhotse import CutSet

    return sorted(cut.supervisions[0].text for cut in CutSet.from_file(cuts_path(context, name, split)))


def test_sets_of_all_kinds_beside_each_other(tmp_path):
    layout = layouts.asterisk(tmp_path / "asterisk")
    layouts.nemo_jsonl(tmp_path / "own")
    corpus = {
        "telephone": {"train": 2, "dev": 0, "test": 1},
        "prompts": {"corpus": "asterisk", "folder": str(tmp_path / "asterisk"), "text": "words", "title": "prompts"},
        "ours": {"cuts": {"test": str(tmp_path / "own" / "train.json")}},
    }
    recipe = context(tmp_path, corpus)
    run(DATA, recipe)
    sets = speech_sets(recipe)
    assert len(texts(recipe, "telephone", "train")) == 2
    assert texts(recipe, "ours", "test") == ["primeiro", "segundo", "terceiro"]
    for split in sets["prompts"].splits(recipe):
        assert texts(recipe, "prompts", split) == sorted(t.lower() for s, t, _ in layout.rows if s == split)
    assert [sets[name].title for name in corpus] == ["telephone", "prompts", "ours"]

    # Lhotse cuts as they are: those that were just made, of another name
    given = {"again": {"cuts": {"train": str(cuts_path(recipe, "ours", "test"))}}}
    other = context(tmp_path / "other", given)
    run(DATA, other)
    assert texts(other, "again", "train") == ["primeiro", "segundo", "terceiro"]
    statistics = json.loads((other.datadir / "cuts" / "statistics.json").read_text())
    assert statistics["again train"]["utterances"] == 3

    lines: list[str] = []
    recipe._console = lines.append
    run(DATA, recipe)
    assert all("SKIP" in line for line in lines), lines


def test_what_is_trained_on_is_not_tested_with(tmp_path):
    layouts.nemo_jsonl(tmp_path)
    manifest = str(tmp_path / "train.json")
    with pytest.raises(StageError, match=r"3 utterances are both in training and in test, e\.g\. .*a\.wav at 0\.1 s"):
        run(DATA, context(tmp_path, {"a": {"cuts": {"train": manifest}}, "b": {"cuts": {"test": manifest}}}))
    assert issubclass(LeakError, NemoMergeError)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (3, "3 is not a mapping such as"),
        ({"train": "many"}, "corpus.telephone.train: 'many' is not a number of utterances"),
        ({"trian": 3}, "no key 'trian'; did you mean 'train'"),
        ({"corpus": "seam"}, "no corpus 'seam'; did you mean 'seame'"),
        ({"corpus": "asterisk", "options": {"languag": "en"}}, "no option 'languag'; did you mean 'language'"),
        ({"corpus": "asterisk", "splits": {"valid": "dev"}}, "'valid' is none of train, dev, test"),
        ({"corpus": "asterisk", "text": "wrods"}, r"corpus.telephone.text: .* did you mean 'words'"),
        ({"cuts": {}}, "is not a mapping from train, dev and test"),
        ({"cuts": {"valid": "x"}}, "'valid' is none of"),
    ],
)
def test_entries_that_are_refused(entry, message):
    with pytest.raises(ConfigError, match=message):
        SpeechSets.read({"corpus": {"telephone": entry}})


def test_other_names_say_what_they_are():
    with pytest.raises(ConfigError, match="no set 'telefone'; did you mean 'telephone'"):
        SpeechSets.read({"corpus": {"telefone": {"train": 3}}})
    with pytest.raises(ConfigError, match="corpus has no set 'b'"):
        SpeechSets.read({"corpus": {"a": {"cuts": {"test": "x"}}}})["b"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"corpus": "seame"}, r"says no folder; SEAME: sold by the LDC .*corpus\.x\.folder=PATH"),
        ({"corpus": "seame", "folder": "/no/such"}, "/no/such does not exist; SEAME"),
        ({"corpus": "seame", "download": True}, "seame cannot be downloaded"),
        ({"cuts": {"dev": "/no/such.json"}}, r"corpus\.x\.cuts\.dev: /no/such\.json does not exist"),
    ],
)
def test_speech_that_is_not_there(tmp_path, entry, message):
    with pytest.raises(NemoMergeError, match=message):
        run(DATA, context(tmp_path, {"x": entry}))
