"""Corners of the formats that the small corpora do not have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import soundfile

from nemo_merge.corpora import find, find_prepared
from nemo_merge.corpora.importers.chat import words_of
from nemo_merge.corpora.recipes.common_voice import variety_of
from nemo_merge.corpora.recipes.portugues_falado import language_of
from nemo_merge.errors import ConfigError, CorpusError

from . import layouts
from .layouts import tone, write
from .test_recipes import rows_of

pytest.importorskip("lhotse")


def skipped(folder: Path, stem: str, split: str = "all") -> dict[str, int]:
    (item,) = find_prepared(folder, corpus=stem)
    return item.splits[split]["skipped"]


def test_the_usual_splits_of_seame(tmp_path):
    """Ids of the lists are in lower case and their times are off by less than 3 hundredths of a second."""
    source, lists = tmp_path / "source", tmp_path / "lists"
    names = {"NI01MAX_0101": "ni01max_0101", "01NC01FBX_0101": "01nc01fbx_0101", "UI07FAZ_0103": "ui07faz_0103"}
    for name in names:
        kind = "conversation" if "NC" in name else "interview"
        tone(source / "seame_d1" / "data" / kind / "audio" / f"{name}.flac", 62.0, 8000)
        rows = "".join(f"{name}\t{start}\t{start + 900}\tEN\tword {start}\n" for start in range(0, 60_000, 1000))
        write(
            source / "seame_d1" / "data" / kind / "transcript" / "phaseII" / f"{name}.txt", rows + f"{name}\tbad row\n"
        )
    write(lists / "train" / "wav_file.txt", "".join(f"./x/{low}/{low}.wav\n" for low in list(names.values())[:2]))
    write(lists / "dev_man" / "text", "ui07f-ui07faz_0103-00102-00188 x\nui07f-ui07faz_0103-00204-00290 x\nbroken x\n")
    write(lists / "dev_sge" / "text", "ni01m-ni01max_0101-00300-00390 x\n")
    manifests = find("seame").prepare(source, tmp_path / "out", lists=str(lists))
    starts = {
        split: sorted((s.recording_id, s.start) for s in found["supervisions"]) for split, found in manifests.items()
    }
    assert starts["dev-man"] == [("UI07FAZ_0103", 1.0)]  # the other one differs by 4 units
    assert starts["dev-sge"] == [("NI01MAX_0101", 3.0)]
    assert len(starts["train"]) + len(starts["dev"]) == 2 * 60 - 1
    assert 1 <= len(starts["dev"]) <= 12
    assert not set(starts["train"]) & {*starts["dev"], *starts["dev-sge"]}
    assert {s.speaker for s in manifests["train"]["supervisions"]} == {"NI01M", "NC01F"}
    assert skipped(tmp_path / "out", "seame", "train") == {"row": 4}  # said once, not with every split
    assert skipped(tmp_path / "out", "seame", "dev-man") == {}


def test_splits_of_fisher_are_lists_of_recordings(tmp_path):
    source, lists = tmp_path / "source", tmp_path / "lists"
    layouts.fisher(source)
    write(lists / "fisher_dev", f"{layouts.FISHER} 1\n{layouts.FISHER} 2_3\nother_fsp 1\n")
    write(lists / "callhome_train", "sp_0001 1\n")
    found = find("fisher_es_en").prepare(source, tmp_path / "out", lists=str(lists), switched=True)
    assert rows_of(found) == [("dev", "fui al mall ayer", "es-en"), ("dev", "un deadline", "es-en")]
    assert skipped(tmp_path / "out", "fisher-es-en", "dev") == {"row": 1, "tag": 3}
    with pytest.raises(CorpusError, match="gone: no such folder"):
        find("fisher_es_en").prepare(source, lists=str(tmp_path / "gone"))


@pytest.mark.parametrize(
    ("raw", "text", "spans"),
    [
        ("hola .", "hola", (("es", 0, 4),)),
        ("el &-um (a)demás@s:spa", "el además", (("es", 0, 9),)),
        ("<I think@s> [//] creo que", "I think creo que", (("es", 0, 1), ("en", 2, 7), ("es", 8, 16))),
        ("ok@s:eng&spa vale", "ok vale", (("es", 3, 7),)),
        ("[- eng] go home ya@s", "go home ya", (("en", 0, 7), ("es", 8, 10))),
        ("New_York@s:eng 0es grande [: enorme] [*]", "New York grande", (("en", 0, 8), ("es", 9, 15))),
        ("xxx www &=laughs +...", "", ()),
        ("cha:::cha@o (.) (1.5) bueno", "chacha bueno", (("es", 0, 12),)),
        ("sí , „ no ?", "sí no", (("es", 0, 5),)),
    ],
)
def test_words_of_chat(raw, text, spans):
    assert words_of(raw, ["es", "en"]) == (text, spans)


def test_lines_of_chat_without_a_time_are_reported(tmp_path):
    layouts.bangor_miami(tmp_path)
    path = tmp_path / "sastre1.cha"
    path.write_text(path.read_text().replace("@End", "*MAR:\tsin tiempo .\n*broken\n@End"))
    with pytest.raises(CorpusError, match=r"sastre1\.cha, line 12: the line of MAR has no time bullet"):
        find("bangor_miami").prepare(tmp_path, strict=True)
    find("bangor_miami").prepare(tmp_path, tmp_path / "out")
    assert skipped(tmp_path / "out", "bangor-miami") == {"row": 2}


def test_the_channel_of_a_pipe(tmp_path):
    layouts.kaldi(tmp_path)
    options = {"name": "x", "language": "pt-PT", "audio_dir": str(tmp_path / "wav")}
    one, two, _ = find("kaldi").prepare(tmp_path, **options)["data-train"]["supervisions"]
    assert (one.channel, two.channel) == (0, 1)
    assert (one.gender, two.speaker) == ("Male", "s2")


def test_audiobooks_in_opus(tmp_path):
    layouts.mls(tmp_path)
    folder = tmp_path / "mls_portuguese"
    for path in folder.rglob("*.flac"):
        samples, rate = soundfile.read(path)
        soundfile.write(path.with_suffix(".opus"), samples, rate, format="OGG", subtype="OPUS")
        path.unlink()
    folder.rename(tmp_path / "mls_portuguese_opus")
    for found in find("mls").prepare(tmp_path).values():
        (recording,) = found["recordings"]
        assert recording.sampling_rate == 16000
        assert recording.load_audio().shape == (1, recording.num_samples)


def test_sphere_audio_that_neither_program_reads(tmp_path):
    layouts.fisher(tmp_path)
    next(tmp_path.rglob("*.sph")).write_bytes(b"NIST_1A\n   1024\n")
    table = next(tmp_path.rglob("*.tdf"))
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(CorpusError, match="compressed with shorten needs sph2pipe"):
        find("fisher_es_en").prepare(tmp_path, strict=True)


@pytest.mark.parametrize("suffix", [".wav.gz", ".raw.gz"])
def test_compressed_audio(suffix, tmp_path):
    """SpeechDat's packed files are covered by its layout; here the rest of the ways into FLAC."""
    from nemo_merge.corpora.audio import open_recording
    from nemo_merge.corpora.sessions import Audio, Headerless

    path = tone(tmp_path / "a.wav", 0.5)
    content = path.read_bytes() if suffix == ".wav.gz" else path.read_bytes()[44:]
    import gzip

    packed = tmp_path / f"a{suffix}"
    packed.write_bytes(gzip.compress(content))
    headerless = Headerless(16000) if suffix == ".raw.gz" else None
    for folder in (tmp_path / "out", None):
        recording = open_recording(Audio(packed, headerless=headerless), "a/b c", folder)
        assert (recording.num_samples, recording.sampling_rate, recording.id) == (8000, 16000, "a/b c")
        original, _ = soundfile.read(path, dtype="float32")
        assert abs(recording.load_audio()[0] - original).max() < 1e-4
    (stored,) = (tmp_path / "out").iterdir()
    assert stored.name.startswith("a_b_c-")


@pytest.mark.parametrize("layout", ["trs", "exb", "hf", "nemo", "kaldi", "splits"])
def test_any_common_layout(layout, tmp_path):
    """What corpora without a layout of their own can be brought into."""
    if layout == "trs":
        tone(tmp_path / "aula.wav", 3.5)
        write(tmp_path / "aula.trs", layouts.TRS, "iso-8859-1")
        expected = [("all", text, "pt-PT") for text in layouts.TRS_TEXTS]
    elif layout == "exb":
        tone(tmp_path / "fala.wav", 2.0)
        write(tmp_path / "fala.exb", layouts.EXB)
        expected = [("all", "bom dia", "pt-PT"), ("all", "pois é", "pt-PT")]
    elif layout == "hf":
        tone(tmp_path / "train" / "a.wav")
        write(tmp_path / "train" / "metadata.jsonl", '{"file_name": "a.wav", "text": "sim"}\n')
        expected = [("train", "sim", "pt-PT")]
    elif layout == "nemo":
        layouts.nemo_jsonl(tmp_path)
        expected = [("train", "primeiro", "pt-PT"), ("train", "segundo", "pt-BR"), ("train", "terceiro", "pt-PT")]
    elif layout == "kaldi":
        tone(tmp_path / "dev" / "a.wav")
        write(tmp_path / "dev" / "wav.scp", "a a.wav\n")
        write(tmp_path / "dev" / "text", "a sim\n")
        expected = [("dev", "sim", "pt-PT")]
    else:
        for split in ("train", "test"):
            tone(tmp_path / split / "a.wav")
            write(tmp_path / split / "a.txt", f"frase {split}\n")
        expected = [("train", "frase train", "pt-PT"), ("test", "frase test", "pt-PT")]
    assert rows_of(find("cng").prepare(tmp_path)) == sorted(expected)


def test_lists_with_an_id_twice(tmp_path):
    layouts.cng(tmp_path)
    write(tmp_path / "prompts.txt", "p1|o gato mia\np1|outro\np2|a bola\n")
    with pytest.raises(CorpusError, match=r"prompts\.txt, line 2: the id 'p1' was used before"):
        find("cng").prepare(tmp_path, strict=True)


def test_byte_order_marks(tmp_path):
    layouts.cng(tmp_path)
    for encoding in ("utf-8-sig", "utf-16"):
        write(tmp_path / "prompts.txt", "p1 não\np2 sim\n", encoding)
        assert [s.text for s in find("cng").prepare(tmp_path, strict=True)["all"]["supervisions"]] == ["não", "sim"]
    write(tmp_path / "prompts.txt", "p1 a\np2 b\n")
    with pytest.raises(ConfigError, match="Python knows no such encoding"):
        find("cng").prepare(tmp_path, encoding="klingon")


def test_links_that_lead_back(tmp_path):
    layouts.cng(tmp_path)
    (tmp_path / "c001" / "up").symlink_to(tmp_path)
    assert len(list(find("cng").prepare(tmp_path)["all"]["supervisions"])) == 2


def test_translations_are_kept(tmp_path):
    layouts.covost2(tmp_path)
    table = tmp_path / "pt" / "covost_v2.pt_en.tsv"
    table.write_text(table.read_text() + "z.mp3\tHi.\ttest\na.mp3\t\ttest\nbroken\n")
    (one,) = find("covost2").prepare(tmp_path, tmp_path / "out")["test"]["supervisions"]
    assert (one.custom["translation"], one.custom["translation_language"]) == ("Hello c.", "en")
    assert skipped(tmp_path / "out", "covost2-pt-en", "test") == {"empty_text": 1, "missing_text": 1}
    assert skipped(tmp_path / "out", "covost2-pt-en", "train") == {"row": 1}
    split = tmp_path / "split" / "pt"
    shutil.copytree(tmp_path / "pt" / "clips", split / "clips")
    write(split / "covost_v2.pt_en.dev.tsv", "path\tsentence\ttranslation\tclient_id\nb.mp3\tOlá.\tHello.\ts\n")
    assert rows_of(find("covost2").prepare(tmp_path / "split")) == [("dev", "Olá.", "pt")]


def test_headers_of_sam_labels(tmp_path):
    layouts.speechdat(tmp_path)
    folder = tmp_path / "FIXED0PT" / "BLOCK00" / "SES0001"
    one, two = (s for s in find("speechdat").prepare(tmp_path)["all"]["supervisions"])
    assert (one.speaker, one.gender, one.custom["age"], one.custom["item"]) == ("00001", "Female", "33", "S1")
    assert one.custom["orig_text"] == "[spk] não são **a00001s1~"
    assert [s.id for s in find("speechdat").prepare(tmp_path, items="S")["all"]["supervisions"]] == [one.id, two.id]
    with pytest.raises(CorpusError, match="nothing of SpeechDat"):
        find("speechdat").prepare(tmp_path, items="W")
    path = folder / "A00001S1.PTO"
    content = path.read_text("latin-1")
    path.write_text(content.replace("SAM: 8000", "SAM: fast"), "latin-1")
    with pytest.raises(CorpusError, match="line 5: SAM: 'fast' is not a sampling rate"):
        find("speechdat").prepare(tmp_path, strict=True)
    path.write_text(content.replace("LBO", "LBX"), "latin-1")
    with pytest.raises(CorpusError, match="no LBO line"):
        find("speechdat").prepare(tmp_path, strict=True)


def test_cues_that_are_no_times(tmp_path):
    layouts.mtedx(tmp_path)
    path = next(tmp_path.rglob("validTalk.pt.vtt"))
    path.write_text(path.read_text().replace("00:00:01.200", "soon"))
    with pytest.raises(CorpusError, match=r"line 8: 'soon --> 00:00:02.300' are not two times"):
        find("mtedx").prepare(tmp_path, strict=True)


def test_varieties_of_portuguese():
    assert variety_of("Portuguese (Portugal)") == "pt-PT"
    assert variety_of("Português do Brasil, região sul") == "pt-BR"
    assert variety_of("nascida no Brasil, vive em Portugal") is None
    assert variety_of("Angola") is None
    assert language_of("x/Guiné_Bissau/a.exb, line 1") == "pt-GW"
    assert language_of("x/Timor-Leste/a.exb") == "pt-TL"
    assert language_of("x/Galiza/a.exb") is None


def test_prompts_of_asterisk(tmp_path):
    layouts.asterisk(tmp_path)
    options = {"least_words": 2, "signs": False}
    (row,) = rows_of(find("asterisk").prepare(tmp_path, **options))
    assert row[1:] == ("You have a new message", "en-US")
    supervision = next(iter(next(iter(find("asterisk").prepare(tmp_path, **options).values()))["supervisions"]))
    assert (supervision.speaker, supervision.gender) == ("Allison", "Female")
    assert supervision.custom["licence"] == "CC BY-SA 3.0"


@pytest.mark.slow
@pytest.mark.parametrize(("language", "utterances"), [("en", 540), ("es", 476)])
def test_asterisk_itself(language, utterances, tmp_path):
    """The packages, where apt can fetch them: every prompt that has audio, one of the Spanish ones twice."""
    try:
        folder = find("asterisk").download(tmp_path / "debian", language=language)
    except CorpusError as error:
        pytest.skip(str(error))
    manifests = find("asterisk").prepare(folder, tmp_path / "out", num_jobs=2, language=language)
    found = [s for split in manifests.values() for s in split["supervisions"]]
    assert len(found) == utterances
    assert {s.speaker for s in found} == {"Allison"}
    texts = {split: {s.text.lower() for s in one["supervisions"]} for split, one in manifests.items()}
    assert not texts["train"] & texts["test"]
    summary = json.loads((tmp_path / "out" / f"asterisk-{language}.json").read_text())
    assert summary["languages"] == [{"en": "en-US", "es": "es-MX"}[language]]


@pytest.mark.slow
def test_ep_mini_itself(tmp_path):
    """Synthesis for once, and the manifests of the recipe beside those of the corpus's own function."""
    pytest.importorskip("espeakng_loader")
    from nemo_merge.corpora.mini import Sizes, prepare_ep_mini, synthesise

    for _ in synthesise(tmp_path / "made", {"code_switching": Sizes(4, 2, 2)}):
        pass
    ours = find("ep_mini").prepare(tmp_path / "made", tmp_path / "out", subset="code_switching")
    theirs = prepare_ep_mini(tmp_path / "made")["code_switching"]
    for split in ("train", "dev", "test"):
        for one, two in zip(ours[split]["supervisions"], theirs[split]["supervisions"], strict=True):
            assert (one.id, one.text, one.language, one.speaker) == (two.id, two.text, two.language, two.speaker)
            assert one.custom["language_spans"] == two.custom["language_spans"]
            assert one.custom["role"] == two.custom["role"]
        recordings = zip(ours[split]["recordings"], theirs[split]["recordings"], strict=True)
        assert all(one == two for one, two in recordings)
    with pytest.raises(CorpusError, match="no set 'children', only code_switching"):
        find("ep_mini").prepare(tmp_path / "made", subset="children")
    with pytest.raises(ConfigError, match="EP-mini has no set 'childern'; did you mean 'children'"):
        find("ep_mini").download(tmp_path / "made", subsets=("childern",))
