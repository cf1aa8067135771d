"""What Lhotse's own recipes do on the same files, and that ours gives the same utterances without it.

Each test shows the trap first: when a later Lhotse repairs it, the test says so by failing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nemo_merge.corpora import find

from . import layouts

pytest.importorskip("lhotse")


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def utterances(supervisions) -> list[tuple]:
    return sorted((s.recording_id, round(s.start, 2), round(s.duration, 2), s.speaker, s.text) for s in supervisions)


def common_voice(source: Path, output: Path) -> subprocess.CompletedProcess:
    """Lhotse's recipe, from a script without a main guard."""
    script = source.parent / "script.py"
    script.write_text(
        f"from lhotse.recipes import prepare_commonvoice\nprepare_commonvoice({str(source)!r}, {str(output)!r}, 'pt', ['test'])\n"
    )
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_common_voice_spawns_processes_and_needs_a_main_guard(source, tmp_path):
    layouts.common_voice(source)
    done = common_voice(source, tmp_path / "theirs")
    assert done.returncode != 0
    assert "BrokenProcessPool" in done.stderr or "bootstrapping phase" in done.stderr
    script = tmp_path / "script.py"
    script.write_text(
        "from nemo_merge.corpora import find\n"
        f"find('common_voice').prepare({str(source)!r}, {str(tmp_path / 'ours')!r}, splits=('test',))\n"
    )
    assert subprocess.run([sys.executable, str(script)], check=False).returncode == 0


def test_common_voice_needs_columns_of_recent_releases(source):
    from lhotse.recipes.commonvoice import _parse_utterance

    layouts.common_voice_old(source)
    header, row = (source / "pt" / "test.tsv").read_text().splitlines()
    info = dict(zip(header.split("\t"), row.split("\t"), strict=True))
    with pytest.raises(KeyError, match="accents"):
        _parse_utterance(source / "pt", "pt", info)
    assert find("common_voice").prepare(source)["test"]


def test_common_voice_cache_looks_for_other_names(source, tmp_path):
    from lhotse.recipes.commonvoice import _parse_utterance, _read_cv_manifests_if_cached

    layouts.common_voice(source)
    for kind in ("recordings", "supervisions"):
        (tmp_path / f"cv-pt_{kind}_test.jsonl.gz").touch()  # as it writes them
    assert not _read_cv_manifests_if_cached(tmp_path, "pt")
    lines = [line.split("\t") for line in (source / "pt" / "train.tsv").read_text().splitlines()]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    theirs = [_parse_utterance(source / "pt", "pt", row)[1] for row in rows]
    assert utterances(find("common_voice").prepare(source)["train"]["supervisions"]) == utterances(theirs)


def test_mls_reads_every_language(source):
    from lhotse.recipes.mls import prepare_mls

    layouts.mls(source)
    with pytest.raises(ValueError, match="unpack"):  # of the German folder
        prepare_mls(source, opus=False)
    (source / "mls_german" / "metainfo.txt").unlink()
    (source / "mls_german").rmdir()
    with pytest.raises(StopIteration):
        prepare_mls(source)  # looks for Opus by default
    theirs = prepare_mls(source, opus=False)["portuguese"]
    ours = find("mls").prepare(source)
    for split in ("train", "dev", "test"):
        assert utterances(ours[split]["supervisions"]) == utterances(theirs[split]["supervisions"])
    assert {s.language for s in theirs["test"]["supervisions"]} == {"portuguese"}


def test_fleurs_needs_an_output_folder(source, tmp_path):
    from lhotse.recipes.fleurs import prepare_fleurs

    layouts.fleurs(source)
    with pytest.raises(AttributeError):
        prepare_fleurs(source, None, "pt_br")
    theirs = prepare_fleurs(source, tmp_path / "theirs", "pt_br")["pt_br"]
    ours = find("fleurs").prepare(source)
    for split in ("train", "dev", "test"):
        (their,), (our,) = theirs[split]["supervisions"], ours[split]["supervisions"]
        assert (our.text, our.recording_id.split("_")[1]) == (their.text, their.recording_id)
        assert their.speaker == "17_1"  # the prompt and a counter
        assert our.speaker is None


def test_mtedx_needs_an_output_folder_says_valid_and_loses_lines(source, tmp_path):
    from lhotse.recipes.mtedx import prepare_mtedx

    layouts.mtedx(source)
    with pytest.raises(TypeError):
        prepare_mtedx(source, None, "pt")
    theirs = prepare_mtedx(source, tmp_path / "theirs", "pt")["pt"]
    assert list(theirs) == ["train", "valid", "test"]
    assert (tmp_path / "theirs" / "pt" / "mtedx-pt_supervisions_valid.jsonl.gz").is_file()
    ours = find("mtedx").prepare(source)
    assert list(ours) == ["train", "dev", "test"]
    # Theirs takes the first cue after a header of one block for part of it, and drops lines with a noise.
    assert [s.text for s in theirs["valid"]["supervisions"]] == ["muito obrigado"]
    hello, welcome, thanks = ours["dev"]["supervisions"]
    assert utterances([thanks]) == utterances(theirs["valid"]["supervisions"])
    assert thanks.id == next(iter(theirs["valid"]["supervisions"])).id
    assert hello.text == "Olá, valid!"
    assert (welcome.text, welcome.custom["orig_text"]) == ("Bem-vindos a todos.", "(Risos) Bem-vindos a todos.")


def test_voxpopuli_has_no_portuguese(source):
    from lhotse.recipes.voxpopuli import prepare_voxpopuli

    with pytest.raises(AssertionError, match="Unsupported language: pt"):
        prepare_voxpopuli(source, task="asr", lang="pt")


def test_talcs_fuses_english_words(source):
    from lhotse.recipes.tal_csasr import prepare_tal_csasr

    layouts.talcs(source)
    theirs = prepare_tal_csasr(source)
    assert list(theirs) == ["train_set", "dev_set", "test_set"]
    (their,) = theirs["train_set"]["supervisions"]
    assert "ALWAYSFINISHING" in their.text
    assert (their.language, their.speaker) == ("Chinese", their.id)
    (our,) = find("talcs").prepare(source)["train"]["supervisions"]
    assert (our.id, our.start, our.duration) == (their.id, their.start, their.duration)
    assert "ALWAYS FINISHING UP" in our.text


def test_fisher_leaves_tags_in_the_text(source):
    from lhotse.recipes.fisher_spanish import create_supervision

    layouts.fisher(source)
    sessions = {"217": {0: "PIN1", 1: "PIN2"}}
    theirs = create_supervision((sessions, next(source.rglob("*.tdf"))))
    assert any("<foreign" in s.text for s in theirs)
    ours = find("fisher_es_en").prepare(source)["all"]["supervisions"]
    assert not any("<" in s.text for s in ours)
    places = [(s.recording_id, s.channel, s.start, s.duration, s.speaker) for s in theirs]
    assert sorted(places) == sorted((s.recording_id, s.channel, s.start, s.duration, s.speaker) for s in ours)


def test_kaldi_directories_with_bare_file_names(source):
    """MUCS: Lhotse reads the directory only once the paths are right."""
    from lhotse.kaldi import load_kaldi_data_dir

    layouts.mucs(source)
    folder = source / "Hindi-English" / "train"
    with pytest.raises(Exception, match=r"train.*rec|Failed"):
        load_kaldi_data_dir(folder / "transcripts", 16000)
    (folder / "transcripts" / "wav.scp").write_text(f"trainrec {folder / 'trainrec.wav'}\n")
    _, theirs, _ = load_kaldi_data_dir(folder / "transcripts", 16000)
    ours = find("mucs").prepare(source)["train"]["supervisions"]
    assert utterances(ours) == utterances(theirs)
