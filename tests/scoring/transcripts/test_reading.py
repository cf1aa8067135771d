from __future__ import annotations

import gzip
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_merge.errors import ConfigError, TranscriptError
from nemo_merge.scoring.transcripts import FORMATS, Problems, read_labels, read_transcripts

UTTERANCES = {"u1": "o gato", "u2": "bom dia, Ana", "u3": "até já"}
FILES = {
    "manifest.json": "".join(json.dumps({"audio_filepath": i, "duration": 1.0, "text": t}) + "\n" for i, t in UTTERANCES.items()),
    "set.jsonl": "".join(json.dumps({"id": i, "text": t, "pred_text": "x"}) + "\n" for i, t in UTTERANCES.items()),
    "text": "u1 o gato\nu2\tbom dia, Ana\nu3  até já \n",
    "ref.trn": "o gato (u1)\nbom dia, Ana (u2)\naté já(u3)\n",
    "table.csv": 'id,text,lang\nu1,o gato,pt\nu2,"bom dia, Ana",pt\nu3,até já,\n',
    "table.tsv": 'path\tsentence\tlocale\nu1\to gato\tpt\nu2\tbom dia, Ana\tpt\nu3\taté já\t\n',
    "out.ctm": ";; made up\nu1 1 0.5 0.1 gato 0.9\nu1 1 0.1 0.1 o\nu2 A 0 .1 bom\nu2 A .2 .1 dia,\nu2 A .3 .1 Ana\nu3 1 0 1 até\nu3 1 1 1 já\n",
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_every_format_says_the_same(tmp_path, name, packed, ending):
    content = FILES[name].replace("\n", ending).encode()
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    problems = Problems()
    found = read_transcripts(path, problems)
    assert {name: item.text.strip() for name, item in found.items()} == UTTERANCES
    assert not problems.found


def test_what_manifests_say_besides(tmp_path):
    path = tmp_path / "m.json"
    rows = [
        {"audio_filepath": "a.wav", "offset": 1.5, "text": "x", "lang": "pt-PT", "domain": "news", "speaker": 7},
        {"audio_filepath": "a.wav", "offset": 3.0, "text": "y", "pred_text": "", "dataset": "d"},
    ]
    path.write_text("".join(map("{}\n".format, map(json.dumps, rows))))
    first, second = read_transcripts(path, Problems()).values()
    assert (first.id, first.from_path, first.language, first.domain, first.speaker) == (
        "a.wav@1.5",
        True,
        "pt-PT",
        "news",
        "7",
    )
    assert (second.heard, second.domain, second.line) == ("", "d", 2)


def test_channels_of_ctm(tmp_path):
    (tmp_path / "a.ctm").write_text("r A 0 1 um\nr B 0 1 dois\ns A 0 1 três\n")
    assert list(read_transcripts(tmp_path / "a.ctm", Problems())) == ["r-A", "r-B", "s"]


@pytest.mark.parametrize(
    ("name", "content", "line", "kind", "message"),
    [
        ("a.json", b'{"id": "a", "text": "x"}\nnot json\n', 2, "unreadable row", "not JSON"),
        ("a.json", b'{"id": "a", "text": "x"}\n[1]\n', 2, "unreadable row", "not a JSON object"),
        ("a.json", b'{"id": "a", "text": "x"}\n\n{"text": "y"}\n', 3, "unreadable row", "no id"),
        ("a.json", b'{"id": "a", "text": "x"}\n{"id": "b"}\n', 2, "unreadable row", "b has no text"),
        ("a.json", b'{"id": "a", "text": "x"}\n{"id": "b", "text": 3}\n', 2, "unreadable row", "is int, not a string"),
        ("a.json", b'{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}\n', 2, "duplicate id", "a is there already, in line 1"),
        ("a.csv", b"id,text\na,x\nb,y,z\n", 3, "unreadable row", "3 columns where the header has 2"),
        ("a.csv", b"id,text\na,x\nb,y\x00\xff\n", 3, "wrong encoding", "not utf-8, at byte 5 of the line"),
        ("a.trn", b"x (a)\ny\n", 2, "unreadable row", "no (utterance-id) at the end"),
        ("a.ctm", b"a 1 0 1 x\na 1 0 1\n", 2, "unreadable row", "4 fields"),
        ("a.ctm", b"a 1 0 1 x\na 1 * * <ALT_BEGIN>\n", 2, "unreadable row", "alternatives are not supported"),
        ("text", "a x\nb ação\n".encode("latin-1"), 2, "wrong encoding", "--encoding says what it is"),
    ],
)  # fmt: skip
def test_bad_rows_are_named_and_left_out(tmp_path, name, content, line, kind, message):
    path = tmp_path / name
    path.write_bytes(content)
    problems = Problems()
    assert list(read_transcripts(path, problems)) == ["a"]
    (problem,) = problems.found
    assert (problem.kind, problem.file, problem.line) == (kind, path, line)
    assert message in problem.message
    with pytest.raises(TranscriptError, match=rf"1 problem in the transcripts:\n  .*{name}:{line}: "):
        problems.stop_if_any()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"", "no utterances found"),
        ("a.json", b"oops\n", "no utterances found; .*a.json:1: not JSON"),
        ("a.csv", b"word,count\nx,1\n", "no utterances found; .*the header names no column for ids"),
        ("a.json", b"\xff\xfe{\x00", "is UTF-16; convert it first"),
        ("a.json.gz", b"not gzip", "cannot be read"),
        ("missing.json", None, "cannot be read .No such file"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TranscriptError, match=message):
        read_transcripts(tmp_path / name, Problems())


def test_encodings(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("a ação\n".encode("latin-1"))
    assert read_transcripts(path, Problems(), encoding="latin-1")["a"].text == "ação"
    path.write_bytes("\ufeffa ação\n".encode())
    assert list(read_transcripts(path, Problems())) == ["a"]
    with pytest.raises(ConfigError, match="there is no encoding 'latin-99'"):
        read_transcripts(path, Problems(), encoding="latin-99")
    with pytest.raises(ConfigError, match="there is no transcript format 'kald'; did you mean 'kaldi'"):
        read_transcripts(path, Problems(), format="kald")


def test_labels(tmp_path):
    (tmp_path / "utt2lang").write_text("u1 pt-PT\nu2 de\n")
    assert read_labels(tmp_path / "utt2lang", Problems()) == {"u1": "pt-PT", "u2": "de"}


@pytest.mark.parametrize("format", FORMATS)
@given(content=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path_factory, format, content):
    path = tmp_path_factory.getbasetemp() / f"any-{format}"
    path.write_bytes(content)
    with suppress(TranscriptError):
        assert all(name == item.id for name, item in read_transcripts(path, Problems(), format=format).items())
