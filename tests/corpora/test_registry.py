"""The registry: what it says, what it needs, and how others add to it."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from nemo_merge.cli._options import read_options
from nemo_merge.corpora import corpora, find, registry
from nemo_merge.corpora.registry import ACCESS, DOMAINS, STATUS, Corpus, register
from nemo_merge.errors import ConfigError
from nemo_merge.reporting.corpus_cards import corpora_page

from .layouts import tone, write

ROOT = Path(__file__).parents[2]

WANTED = {
    "camoes_si", "falar", "common_voice", "mls", "mtedx", "fleurs", "coraa", "portugues_falado", "lectra", "alert",
    "bd_publico", "fala_bracarense", "cng", "speechdat", "seame", "talcs", "ascend", "cs_fleurs", "mucs", "fisher_es_en",
    "bangor_miami", "arzen", "decm", "covost2", "asterisk",
}  # fmt: skip


def test_entries_are_complete():
    assert {corpus.name for corpus in corpora()} >= WANTED
    for corpus in corpora():
        assert corpus.access in ACCESS
        assert corpus.status in STATUS
        assert corpus.domain in DOMAINS
        assert corpus.layout
        assert corpus.licence
        assert corpus.kind == "format" or (corpus.citation and corpus.source)
        parameters = list(inspect.signature(corpus.prepare).parameters)
        assert parameters[:5] == ["corpus_dir", "output_dir", "num_jobs", "strict", "progress"]
        assert parameters[5:] == list(corpus.options)
        assert corpus.prepare.__name__.startswith("prepare_")
        assert corpus.prepare.__doc__
        assert "output_dir: " in corpus.prepare.__doc__
        assert all(f"\n    {option}: " in corpus.prepare.__doc__ for option in corpus.options)
        if corpus.download:
            assert list(inspect.signature(corpus.download).parameters)[:2] == ["target_dir", "force_download"]
            assert corpus.access == "open"


def test_nothing_is_claimed_that_was_not_seen():
    """A licence counts as verified, and a recipe as tested on the corpus, only for what this machine can install."""
    assert {corpus.name for corpus in corpora() if corpus.licence_verified or corpus.status == "tested_on_real"} == {
        "asterisk",
        "ep_mini",
    }


def test_names_that_are_nearly_right():
    assert find("CAMOES-SI") is find("camoes_si")
    with pytest.raises(ConfigError, match="there is no corpus 'lectr'; did you mean 'lectra'"):
        find("lectr")


def test_listing_needs_neither_lhotse_nor_torch():
    code = (
        "import sys; from nemo_merge.corpora import corpora; corpora(); import nemo_merge.cli.corpora\n"
        "assert not {'torch', 'lhotse', 'nemo', 'numpy', 'pyarrow', 'soundfile'} & sys.modules.keys(), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_another_package_adds_a_corpus(tmp_path, monkeypatch):
    """A module as an entry point of the group ``nemo_merge.corpora``; one that fails is only a warning."""
    pytest.importorskip("lhotse")
    module = tmp_path / "my_corpora.py"
    module.write_text(
        '''
from nemo_merge.corpora import Audio, Corpus, Utterance
from nemo_merge.corpora.registry import register
from nemo_merge.corpora.sessions import Layout, single

CORPUS = register(Corpus(name="radio_minho", title="Radio Minho", domain="broadcast_news", languages=("pt-PT",),
    licence="ours", access="in_house", source="us", layout="*.wav", splits=("all",), citation="none"))

@CORPUS.recipe
def prepare_radio_minho(source, *, shout: bool = False):
    """News of the Minho."""
    def sessions():
        for path in source.find("*.wav"):
            text = path.stem.upper() if shout else path.stem
            yield single(Audio(path), Utterance(path.stem, str(path), text))
    return Layout({"all": sessions()})
'''
    )
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        EntryPoint("broken", "not_a_module", "nemo_merge.corpora"),
        EntryPoint("mine", "my_corpora", "nemo_merge.corpora"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    monkeypatch.setattr(registry, "_CORPORA", dict(registry._CORPORA))
    registry._load.cache_clear()
    corpus = find("radio_minho")
    tone(tmp_path / "audio" / "boa.wav")
    (supervision,) = corpus.prepare(tmp_path / "audio", shout=True)["all"]["supervisions"]
    assert (supervision.text, supervision.custom["domain"]) == ("BOA", "broadcast_news")
    registry._load.cache_clear()


def test_the_page_of_corpora_is_up_to_date():
    """``python -m nemo_merge.reporting.corpus_cards`` writes it."""
    assert (ROOT / "docs" / "reference" / "corpora.md").read_text(encoding="utf-8") == corpora_page()


def test_commands_of_the_guide():
    page = (ROOT / "docs" / "how-to" / "prepare-corpora.md").read_text(encoding="utf-8")
    checked = []
    for block in re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            program, verb, *words = shlex.split(line, comments=True)
            if verb not in ("prepare", "download"):
                continue
            name, *rest = [word for word in words if not word.startswith("-") and not word.isdigit()]
            corpus = find(name.removeprefix("nemo-merge-") if program == "nemo-merge-lhotse" else name)
            options = [word for word in rest if "=" in word]
            if verb == "prepare":
                given = read_options(options, corpus.options, name)
                needed = [key for key, value in corpus.options.items() if value is inspect.Parameter.empty]
                assert set(needed) <= given.keys()
            checked.append(corpus.name)
    assert len(checked) >= 8


def test_the_example_of_the_guide(tmp_path, monkeypatch):
    pytest.importorskip("lhotse")
    page = (ROOT / "docs" / "how-to" / "prepare-corpora.md").read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[-1]
    monkeypatch.setattr(registry, "_CORPORA", dict(registry._CORPORA))
    exec(compile(code, "prepare-corpora.md", "exec", dont_inherit=True), {"__name__": "example"})
    for split in ("train", "test"):
        tone(tmp_path / split / "noite.flac", 3.0)
        write(
            tmp_path / split / "noite.tsv",
            f"start\tend\ttext\n0.5\t1.5\tboa noite {split}\n".replace("0.5", f"0.{len(split)}"),
        )
    found = find("radio_minho").prepare(tmp_path, strict=True)
    assert [s.text for split in found.values() for s in split["supervisions"]] == ["boa noite train", "boa noite test"]


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="there is already a corpus called 'lectra'"):
        register(Corpus("lectra", "", "any", ("pt",), "", "own", "", "", (), ""))
