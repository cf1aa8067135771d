"""What is wrong with a corpus is said with file and line, left out and counted; strict, it is an error."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_merge.corpora import find, prepare
from nemo_merge.errors import ConfigError, CorpusError, NemoMergeError

from . import layouts
from .layouts import tone, write

pytest.importorskip("lhotse")
KALDI = {"name": "x", "language": "pt-PT"}


def kaldi(root: Path, **files: str) -> Path:
    """A directory with one good utterance, ``good``, and what the test adds to its files."""
    tone(root / "good.wav", 2.0)
    good = {"wav.scp": "good good.wav\n", "text": "good bom dia\n", "utt2spk": "good s\n"}
    for name, content in {**good, **{key.replace("_scp", ".scp"): good.get(key.replace("_scp", ".scp"), "") + value
                                     for key, value in files.items()}}.items():  # fmt: skip
        write(root / name, content)
    return root


def missing_audio(root: Path) -> str:
    kaldi(root, wav_scp="bad gone.wav\n", text="bad olá\n")
    return "text, line 2: gone.wav does not exist"


def damaged_audio(root: Path) -> str:
    write(root / "bad.wav", "RIFF, but no more")
    kaldi(root, wav_scp="bad bad.wav\n", text="bad olá\n")
    return r"text, line 2: .*bad.wav cannot be read as audio \(Error opening .*: Format not recognised\)"


def empty_audio(root: Path) -> str:
    tone(root / "bad.wav", 0.0)
    kaldi(root, wav_scp="bad bad.wav\n", text="bad olá\n")
    return "text, line 2: .*bad.wav"


def empty_transcript(root: Path) -> str:
    tone(root / "bad.wav")
    kaldi(root, wav_scp="bad bad.wav\n", text="bad\n")
    return r"text, line 2: bad has no words \(''\)"


def transcript_of_marks(root: Path) -> str:
    tone(root / "bad.wav")
    kaldi(root, wav_scp="bad bad.wav\n", text="bad ... ?!\n")
    return r"text, line 2: bad has no words \('... \?!'\)"


def duplicate_id(root: Path) -> str:
    tone(root / "bad.wav")
    kaldi(root, wav_scp="bad bad.wav\n", text="good outra vez\n")
    return "text, line 2: the id 'good' was used before"


def not_utf8(root: Path) -> str:
    tone(root / "bad.wav")
    kaldi(root, wav_scp="bad bad.wav\n")
    (root / "text").write_bytes("good bom dia\nbad não\n".encode("latin-1"))
    return "text, line 2: byte 0xe3 is not UTF-8; pass encoding=latin-1"


def no_recording(root: Path) -> str:
    kaldi(root, text="bad olá\n")
    return "text, line 2: bad is not in .*wav.scp"


def pipe(root: Path) -> str:
    kaldi(root, wav_scp="bad rm -rf / |\n", text="bad olá\n")
    return r"wav.scp, line 2: 'rm -rf / \|' is a pipe without one input file; it is not run"


def with_segments(root: Path, segments: str, text: str) -> None:
    kaldi(root, segments=f"good good 0.1 0.9\n{segments}", text=text)


def after_the_end(root: Path) -> str:
    with_segments(root, "bad good 1.5 2.5\n", "bad olá\n")
    return "text, line 2: bad ends at 2.5 s, but its audio is 2 s long"


def backwards(root: Path) -> str:
    with_segments(root, "bad good 1.5 1.2\n", "bad olá\n")
    return "text, line 2: bad runs from 1.5 to 1.2 s"


def not_finite(root: Path) -> str:
    with_segments(root, "bad good nan inf\n", "")
    return "segments, line 2: 'bad good nan inf' is not utterance, recording, start and end"


def overlap(root: Path) -> str:
    with_segments(root, "bad good 0.5 1.2\n", "bad olá\n")
    write(root / "utt2spk", "good s\nbad s\n")
    return r"text, line 2: bad starts at 0.5 s, before good of the same speaker ends \(0.9 s\)"


def broken_segment(root: Path) -> str:
    with_segments(root, "bad good 0.5\n", "")
    return "segments, line 2: 'bad good 0.5' is not utterance, recording, start and end"


def segment_without_text(root: Path) -> str:
    with_segments(root, "bad good 1.0 1.2\n", "")
    return "segments, line 2: bad is not in .*text"


CASES = [
    (missing_audio, "missing_audio"), (damaged_audio, "unreadable_audio"), (empty_audio, "unreadable_audio"),
    (empty_transcript, "empty_text"), (transcript_of_marks, "empty_text"), (duplicate_id, "duplicate_id"),
    (not_utf8, "encoding"), (no_recording, "missing_audio"), (pipe, "row"), (after_the_end, "bounds"),
    (backwards, "bounds"), (not_finite, "row"), (overlap, "overlap"), (broken_segment, "row"),
    (segment_without_text, "missing_text"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "kind"), CASES, ids=lambda case: getattr(case, "__name__", case))
def test_a_row_that_cannot_be_used_is_left_out(spoil, kind, tmp_path, caplog):
    source, output = tmp_path / "source", tmp_path / "output"
    message = spoil(source)
    manifests = find("kaldi").prepare(source, output, **KALDI)
    assert [s.id for s in manifests["all"]["supervisions"]] == ["good"]
    assert json.loads((output / "x.json").read_text())["splits"]["all"]["skipped"] == {kind: 1}
    (problem,) = map(json.loads, (output / "x_problems_all.jsonl").read_text().splitlines())
    assert problem["kind"] == kind
    assert re.search(message, f"{problem['place']}: {problem['message']}")
    assert problem["message"] in caplog.text
    with pytest.raises(CorpusError, match=message):
        find("kaldi").prepare(source, tmp_path / "strict", strict=True, **KALDI)


def test_people_may_speak_at_once(tmp_path):
    with_segments(tmp_path, "other good 0.5 1.2\n", "other olá\n")
    write(tmp_path / "utt2spk", "good s\nother t\n")
    supervisions = find("kaldi").prepare(tmp_path, strict=True, **KALDI)["all"]["supervisions"]
    assert [s.id for s in supervisions] == ["good", "other"]


def test_ends_that_were_rounded_up_are_cut(tmp_path):
    with_segments(tmp_path, "last good 1.0 2.05\n", "last olá\n")
    _, last = find("kaldi").prepare(tmp_path, strict=True, **KALDI)["all"]["supervisions"]
    assert last.end == 2.0


BOMB = '<!DOCTYPE Trans [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
OUTSIDE = '<!DOCTYPE Trans [<!ENTITY x SYSTEM "file:///etc/hostname">]>'
DOCTYPE = '<!DOCTYPE Trans SYSTEM "trans-14.dtd">'


@pytest.mark.parametrize(
    ("change", "message", "kind"),
    [
        (lambda text: text.replace("</Turn>", "", 1), "line 30: broken XML (mismatched tag, column", "xml"),
        (lambda text: text[: len(text) // 2], "broken XML", "xml"),
        (lambda text: text.replace(DOCTYPE, BOMB), "line 2: declares or names entities", "xml"),
        (lambda text: text.replace(DOCTYPE, OUTSIDE).replace("percebi", "&x;"), "line 2: declares or names", "xml"),
        (lambda text: text.replace('"ISO-8859-1"', '"UTF-8"'), "line 5: byte 0xe3 is not UTF-8, which the file", "encoding"),
        (lambda text: text.replace('"ISO-8859-1"', '"klingon"'), "the encoding 'klingon' is unknown", "encoding"),
        (lambda text: text.replace('speaker="spk2"', 'speaker="spk9"'), "line 19: the speaker 'spk9' is not in", "row"),
        (lambda text: text.replace('Sync time="2.0"', 'Sync time="two"'), "line 20: Sync time='two'", "row"),
        (lambda text: text.replace('<Sync time="2.0"/>', ""), "line 19: the turn has no Sync", "row"),
        (lambda text: text.replace('startTime="2.0"', 'startTime=""'), "line 19: the turn has no startTime", "row"),
        (lambda text: text.replace("<Trans ", "<Other ").replace("</Trans>", "</Other>"), "line 3: <Other> is not", "row"),
    ],
)  # fmt: skip
def test_transcriber(change: Callable[[str], str], message, kind, tmp_path):
    source, output = tmp_path / "source", tmp_path / "output"
    tone(source / "good.wav", 3.5)
    tone(source / "bad.wav", 3.5)
    write(source / "good.trs", layouts.TRS, "iso-8859-1")
    write(source / "bad.trs", change(layouts.TRS), "iso-8859-1")
    find("alert").prepare(source, output)
    (problem,) = map(json.loads, (output / "alert_problems_all.jsonl").read_text().splitlines())
    assert problem["kind"] == kind
    assert message in f"{problem['place']}: {problem['message']}"
    with pytest.raises(CorpusError, match=r"bad\.trs"):
        find("alert").prepare(source, strict=True)


def test_a_wrong_declaration_of_the_encoding_is_overridden(tmp_path):
    tone(tmp_path / "a.wav", 3.5)
    write(tmp_path / "a.trs", layouts.TRS.replace("ISO-8859-1", "UTF-8"), "iso-8859-1")
    supervisions = find("alert").prepare(tmp_path, strict=True, encoding="latin-1")["all"]["supervisions"]
    assert [s.text for s in supervisions] == layouts.TRS_TEXTS


def fisher_line(root: Path, text: str) -> None:
    layouts.fisher(root)
    path = next(root.rglob("*.tdf"))
    path.write_text(
        f"{layouts.TDF_HEADER}x.sph\t0\t0.2\t1.2\ts\tmale\tnative\t{text}\t0\nx.sph\t0\t2\t3\ts\tmale\tnative\tbien\t0\n"
    )


@pytest.mark.parametrize(
    ("text", "expected", "kind"),
    [
        ('el <foreign lang="Englih">mall</foreign>', "el mall", "tag"),
        ('el <foriegn lang="English">mall</foriegn>', "el mall", "tag"),
        ('el <foreign lang="English">mall<foreign>', "el mall", "tag"),
        ('el < foreign lang="English" >mall</ foreign>', "el mall", None),
        ("el <foreign lang=English>mall</foreign>", "el mall", None),
        ("el mall</foreign>", "el mall", "tag"),
        ('el <foreign lang="English">mall', None, "row"),
        ('el <foreign lang="Quechua">wasi</foreign>', None, "row"),
        ("el <foreign>mall</foreign>", None, "row"),
        ('el <foreign lang="English" mall', None, "row"),
    ],
)
def test_typing_errors_in_tags(text, expected, kind, tmp_path):
    source, output = tmp_path / "source", tmp_path / "output"
    fisher_line(source, text)
    supervisions = find("fisher_es_en").prepare(source, output)["all"]["supervisions"]
    assert [s.text for s in supervisions] == [item for item in (expected, "bien") if item]
    skipped = json.loads((output / "fisher-es-en.json").read_text())["splits"]["all"]["skipped"]
    assert list(skipped) == ([kind] if kind else [])
    if kind:
        with pytest.raises(CorpusError, match=r"\.tdf, line 4"):
            find("fisher_es_en").prepare(source, strict=True)


@pytest.mark.parametrize(
    ("recipe", "make", "file", "old", "new", "message"),
    [
        ("common_voice", layouts.common_voice, "train.tsv", "sentence", "sentense", "no column sentence; there are"),
        ("coraa", layouts.coraa, "metadata_train_final.csv", "text", "txt", "no column text; there are"),
        ("covost2", layouts.covost2, "covost_v2.pt_en.tsv", "translation", "t", "no column translation"),
        ("hf_audio", layouts.hf_audio, "metadata.csv", "frase", "phrase", "no column frase; there are"),
    ],
)
def test_missing_columns(recipe, make, file, old, new, message, tmp_path):
    made = make(tmp_path)
    path = next(tmp_path.rglob(file))
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(CorpusError, match=rf"{file}: {message}"):
        find(recipe).prepare(tmp_path, **made.options)


def test_tables(tmp_path):
    layouts.common_voice(tmp_path)
    table = tmp_path / "pt" / "train.tsv"
    table.write_text(table.read_text() + "too\tfew\n")
    with pytest.raises(CorpusError, match=r"train.tsv, line 4: 2 cells, but the header names 11 columns"):
        find("common_voice").prepare(tmp_path, strict=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 4: not JSON"),
        ("[1]", "line 4: not a JSON object"),
        ('{"audio_filepath": "audio/b.wav", "text": "\\ud800"}', "line 4: half of a character"),
        ('{"text": "x"}', "line 4: no audio_filepath"),
        ('{"audio_filepath": "audio/b.wav", "duration": "long", "text": "x"}', "line 4: offset, duration"),
    ],
)
def test_nemo_manifests(line, message, tmp_path):
    made = layouts.nemo_jsonl(tmp_path)
    path = tmp_path / "train.json"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]) + line + "\n")
    assert len(list(find("nemo_jsonl").prepare(tmp_path, **made.options)["train"]["supervisions"])) == 3
    with pytest.raises(CorpusError, match=message):
        find("nemo_jsonl").prepare(tmp_path, strict=True, **made.options)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"version https://git-lfs", "Git LFS pointer"), (b"PAR1 or not", "cannot be read as parquet")],
)
def test_damaged_parquet(content, message, tmp_path):
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        find("camoes_si").prepare(tmp_path)


def test_folders_that_are_something_else(tmp_path):
    with pytest.raises(CorpusError, match=r"no such folder; LECTRA is <lecture>\.raw"):
        find("lectra").prepare(tmp_path / "gone")
    for name in ("lectra", "seame", "speechdat", "bangor_miami", "fisher_es_en", "camoes_si", "talcs"):
        with pytest.raises(CorpusError, match=r"nothing of .* is here; expected"):
            find(name).prepare(tmp_path)
    for name in ("mls", "mtedx", "fleurs", "common_voice"):
        with pytest.raises(CorpusError, match="has none of the folders"):
            find(name).prepare(tmp_path)
    for name in ("bd_publico", "cng", "arzen", "decm"):
        with pytest.raises(NemoMergeError, match="not in a layout that is known here"):
            find(name).prepare(tmp_path)
    with pytest.raises(
        CorpusError, match=r"apt-get install asterisk-core-sounds-en-wav .* nemo-merge download asterisk"
    ):
        find("asterisk").prepare(tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lectra", {"rat": 8000}, "has no option 'rat'; did you mean 'rate'"),
        ("mucs", {"pair": "hi_en"}, "has no pair 'hi_en'; did you mean 'hi-en'"),
        ("kaldi", {"name": "x"}, "kaldi needs language=..."),
        ("common_voice", {"variety": "pt-pt"}, "did you mean 'pt-PT'"),
        ("seame", {"phase": "2"}, "phase='2' is neither I nor II"),
        ("lectra", {"num_jobs": 0}, "num_jobs=0 is not a number from 1 on"),
    ],
)
def test_options(name, options, message, tmp_path):
    with pytest.raises(NemoMergeError, match=message):
        find(name).prepare(tmp_path, **options)


def test_nothing_usable_is_an_error(tmp_path):
    layouts.cng(tmp_path / "source")
    for path in (tmp_path / "source").rglob("*.wav"):
        path.write_bytes(b"")
    with pytest.raises(CorpusError, match=r"no utterance is usable; see .*problems"):
        find("cng").prepare(tmp_path / "source", tmp_path / "out")
    with pytest.raises(CorpusError, match=r"no utterance is usable \(.*'unreadable_audio': 2"):
        find("cng").prepare(tmp_path / "source")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cng_problems_all.jsonl"]


def test_without_lhotse(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'nemo-merge\[lhotse\]'"):
        find("cng").prepare(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    layouts.cng(tmp_path / "source")
    (tmp_path / "file").write_text("")
    with pytest.raises(CorpusError, match="file: File exists"):
        find("cng").prepare(tmp_path / "source", tmp_path / "file")


def test_names_stay_in_the_folder(tmp_path):
    layouts.cng(tmp_path / "source")
    options = {"name": "../../outside/Nome com_espaços", "language": "pt-PT"}
    find("folder").prepare(tmp_path / "source", tmp_path / "out", **options)
    assert {path.name.split("_")[0].removeprefix(".") for path in (tmp_path / "out").iterdir()} == {
        "outside-Nome-com-espaços",
        "outside-Nome-com-espaços.json",
    }
    for name in ("a_b", "a-b"):
        tone(tmp_path / "kaldi" / name / "u.wav")
        write(tmp_path / "kaldi" / name / "wav.scp", f"{name} u.wav\n")
        write(tmp_path / "kaldi" / name / "text", f"{name} sim\n")
    with pytest.raises(CorpusError, match="splits differ only in characters that file names lack"):
        find("kaldi").prepare(tmp_path / "kaldi", **KALDI)
