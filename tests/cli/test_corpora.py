"""The verbs around corpora as users call them, and Lhotse's command line with our recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from nemo_merge.corpora import corpora, find
from nemo_merge.corpora.recipes import _downloads, asterisk
from nemo_merge.errors import ConfigError, CorpusError
from tests.corpora import layouts


def test_corpora(command_line):
    code, out, _ = command_line("corpora")
    assert code == 0
    assert all(f"\n{corpus.name} " in out or out.startswith(corpus.name) for corpus in corpora())
    assert "(?)" in out
    code, out, _ = command_line("corpora", "lectra")
    assert code == 0
    for part in ("ELRA-S0366", "check it", "rate=16000", "tested on fixture", "nemo-merge prepare lectra SRC OUT"):
        assert part in out
    code, out, _ = command_line("corpora", "--json", "--language", "pt", "--domain", "interviews")
    found = {entry["name"]: entry for entry in json.loads(out)}
    assert sorted(found) == ["camoes_si", "fala_bracarense"]
    assert found["camoes_si"]["licence_verified"] is False
    assert (found["camoes_si"]["download"], found["fala_bracarense"]["download"]) == (True, False)
    code, _, err = command_line("corpora", "lecta")
    assert (code, "did you mean 'lectra'" in err) == (2, True)


def test_prepare_and_export(tmp_path, command_line):
    pytest.importorskip("lhotse")
    source = tmp_path / "source"
    made = layouts.lectra(source)
    code, out, err = command_line("prepare", "lectra", str(source), str(tmp_path / "out"), "-j", "2", "rate=16000")
    assert (code, err) == (0, "")
    assert "lectra: lectures, pt-PT" in out
    assert all(split in out for split in ("train", "test"))
    layouts.fisher(tmp_path / "fisher")
    assert command_line("prepare", "fisher-es-en", str(tmp_path / "fisher"), str(tmp_path / "out"))[0] == 0
    code, out, _ = command_line(
        "export-nemo",
        str(tmp_path / "out"),
        str(tmp_path / "nemo"),
        "--split",
        "train",
        "--split",
        "all",
    )
    assert code == 0
    train, everything = (yaml.safe_load(Path(line).read_text()) for line in out.splitlines())
    (entry,) = train
    assert (entry["type"], entry["weight"]) == ("nemo", 1.0)
    assert entry["tags"] == {"corpus": "lectra", "domain": "lectures", "lang": "pt-PT"}
    rows = [json.loads(line) for line in Path(entry["manifest_filepath"]).read_text().splitlines()]
    assert [row["text"] for row in rows] == [text for split, text, _ in made.rows if split == "train"]
    assert all(Path(row["audio_filepath"]).is_file() for row in rows)
    assert everything[0]["type"] == "lhotse"  # two channels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "lectra", "SRC", "OUT", "rate=fast"], "rate='fast' is not a whole number"),
        (["prepare", "lectra", "SRC", "OUT", "rat=8000"], "lectra has no option 'rat'; did you mean 'rate'?"),
        (["prepare", "lectra", "SRC", "OUT", "fast"], "'fast' is not of the form KEY=VALUE"),
        (["prepare", "asterisk", "SRC", "OUT", "signs=maybe"], "signs='maybe' is neither true nor false"),
        (["prepare", "lectra", "SRC", "OUT"], "nothing of LECTRA is here"),
        (["prepare", "kaldi", "SRC", "OUT"], "kaldi needs name=..., language=..."),
        (["download", "lectra", "DIR"], "lectra cannot be fetched by a command; it is sold by ELRA: ELRA-S0366"),
        (["download", "mls", "DIR", "lang=pt"], "the download of mls has no option 'lang'; did you mean 'language'?"),
        (["export-nemo", "SRC", "OUT"], "holds no prepared corpus that fits"),
    ],
)
def test_problems_are_one_message(arguments, message, monkeypatch, tmp_path, command_line):
    (tmp_path / "SRC").mkdir()
    monkeypatch.chdir(tmp_path)
    code, out, err = command_line(*arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_strict_stops_with_2(tmp_path, command_line):
    pytest.importorskip("lhotse")
    layouts.cng(tmp_path / "source")
    (tmp_path / "source" / "prompts.txt").write_text("p1 o gato mia\n")
    command = ["prepare", "cng", str(tmp_path / "source"), str(tmp_path / "out")]
    code, out, err = command_line(*command)
    assert (code, "1 missing text" in out) == (0, True)
    code, out, err = command_line(*command, "--strict")
    assert (code, out) == (2, "")
    assert "p2.wav: no transcript goes with this audio (strict" in err


def test_lhotse_with_our_recipes(tmp_path):
    pytest.importorskip("lhotse")
    from nemo_merge.cli.lhotse import lhotse_cli

    group = lhotse_cli()
    prepare = group.commands["prepare"].commands
    assert lhotse_cli() is group  # a second time adds nothing
    assert {"camoes-si", "seame", "nemo-merge-mls", "mls", "librispeech"} <= prepare.keys()
    assert "nemo_merge" not in (prepare["mls"].help or "")
    assert "nemo-merge-nemo-merge-mls" not in prepare
    assert {"ascend", "nemo-merge-fleurs", "fleurs"} <= group.commands["download"].commands.keys()
    layouts.talcs(tmp_path / "source")
    arguments = ["prepare", "talcs", str(tmp_path / "source"), str(tmp_path / "out")]
    done = CliRunner().invoke(group, arguments)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "talcs_supervisions_dev.jsonl.gz").is_file()


def test_downloads(tmp_path, monkeypatch, capsys):
    """What is asked of the hub and of archives, without a network."""
    asked = []

    def snapshot_download(dataset, **options):
        asked.append((dataset, options["repo_type"], options["allow_patterns"]))
        if dataset == "inesc-id/camoes_SI":
            raise OSError("401 gated")
        return options["local_dir"]

    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert find("cs_fleurs").download(tmp_path) == tmp_path
    assert find("falar").download(tmp_path, splits=("train-3",)) == tmp_path
    assert asked == [
        ("byan/cs-fleurs", "dataset", ["README.md", "read/test/*"]),
        ("inesc-id/FalAR", "dataset", ["README.md", "*train_3*"]),
    ]
    with pytest.raises(CorpusError, match=r"inesc-id/camoes_SI: cannot be downloaded \(401 gated\); .*`hf auth login`"):
        find("camoes_si").download(tmp_path)


def test_archives(tmp_path):
    pytest.importorskip("lhotse")
    import shutil

    layouts.mucs(tmp_path / "corpus")
    archive = shutil.make_archive(str(tmp_path / "set"), "gztar", tmp_path / "corpus")
    url = Path(archive).as_uri()
    folder = _downloads.archive(url, tmp_path / "target")
    assert (folder / "Hindi-English" / "train" / "transcripts" / "text").is_file()
    (folder / "Hindi-English" / "train" / "transcripts" / "text").unlink()
    assert _downloads.archive(url, tmp_path / "target") == folder
    assert not (folder / "Hindi-English" / "train" / "transcripts" / "text").exists()  # done before, not done again
    with pytest.raises(CorpusError, match=r"gone\.tar\.gz: cannot be downloaded"):
        _downloads.archive((tmp_path / "gone.tar.gz").as_uri(), tmp_path / "other")


def test_asterisk_without_apt(tmp_path, monkeypatch):
    monkeypatch.setattr(asterisk.shutil, "which", lambda program: None)
    with pytest.raises(CorpusError, match="needs apt-get and dpkg-deb of Debian"):
        find("asterisk").download(tmp_path, language="it")
    with pytest.raises(ConfigError, match="asterisk has no language 'pt'"):
        find("asterisk").prepare(tmp_path, language="pt")
    with pytest.raises(CorpusError, match="false failed: 1"):
        asterisk._run(["false"], tmp_path)
