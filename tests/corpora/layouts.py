"""Small corpora in every documented layout, made at run time: three utterances or so, of half a second and more."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

Row = tuple[str, str, str]
"""Split, text and language of an utterance."""


@dataclass(frozen=True)
class Layout:
    """A corpus that was made, and what its recipe must give.

    Attributes:
        recipe: name in the registry.
        rows: what must come out, in any order.
        options: of the recipe.
        stem: first part of the names of the manifests.
        spans: language spans by text.
        conversation: whether a recording holds several utterances.
        domain: if it is not that of the registry.
    """

    recipe: str
    rows: list[Row]
    stem: str
    options: dict[str, Any] = field(default_factory=dict)
    spans: dict[str, list[list[Any]]] = field(default_factory=dict)
    conversation: bool = False
    domain: str | None = None


def tone(path: Path, seconds: float = 0.6, rate: int = 16000, channels: int = 1, **how: Any) -> Path:
    """Writes a tone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples(seconds, rate, channels), rate, **how)
    return path


def samples(seconds: float, rate: int = 16000, channels: int = 1) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * 220 * time).astype(np.float32)
    return np.stack([wave * (1 + channel) / channels for channel in range(channels)], axis=1) if channels > 1 else wave


def encoded(seconds: float = 0.6, form: str = "WAV") -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples(seconds), 16000, format=form)
    return stream.getvalue()


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    from pyarrow import parquet as files

    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def camoes_si(root: Path) -> Layout:
    rows = [
        {"audio": {"bytes": encoded(), "path": "a.wav"}, "reference": f"frase {word}", "ID": f"si/{word}",
         "speaker_id": "s1", "dataset": "CRPC"}
        for word in ("um", "dois")
    ]  # fmt: skip
    parquet(root / "data" / "test-00000-of-00001.parquet", rows)
    return Layout("camoes_si", [("test", "frase um", "pt-PT"), ("test", "frase dois", "pt-PT")], "camoes-si")


def falar(root: Path) -> Layout:
    for split, name in (("train_0", "a"), ("train_15", "b"), ("dev", "c"), ("test", "d")):
        row = {"ID": name, "wav": {"bytes": encoded(form="FLAC"), "path": None}, "transcription": f"senhor {name}",
               "speaker_id": 7, "duration": 0.6, "gender": "f", "age": 50}  # fmt: skip
        parquet(root / "data" / f"{split}-00000-of-00001.parquet", [row])
    splits = {"train-0": "a", "train-15": "b", "dev": "c", "test": "d"}
    return Layout("falar", [(split, f"senhor {name}", "pt-PT") for split, name in splits.items()], "falar")


def ascend(root: Path) -> Layout:
    texts = {"mixed": "我们 go home", "zh": "好的", "en": "okay then"}
    rows = [
        {"id": f"u{index}", "path": "x.wav", "audio": {"bytes": encoded(), "path": "x.wav"}, "transcription": text,
         "duration": 0.6, "language": language, "original_speaker_id": 3, "session_id": 1, "topic": "sports"}
        for index, (language, text) in enumerate(texts.items())
    ]  # fmt: skip
    parquet(root / "main" / "validation-00000-of-00001.parquet", rows)
    return Layout(
        "ascend",
        [("dev", "我们 go home", "zh-en"), ("dev", "好的", "zh"), ("dev", "okay then", "en")],
        "ascend",
        spans={"我们 go home": [["zh", 0, 2], ["en", 3, 10]]},
    )


def cs_fleurs(root: Path) -> Layout:
    tone(root / "read" / "test" / "audio" / "1.wav")
    tone(root / "read" / "test" / "audio" / "2.wav")
    tone(root / "xtts" / "train" / "audio" / "3.wav")
    read = [
        {"id": "r1", "file_name": "audio/1.wav", "text": "das ist ein test", "duration": 0.6, "fluency": 3,
         "language": "deu-eng", "speaker": "A"},
        {"id": "r2", "file_name": "audio/2.wav", "text": "это good", "duration": 0.6, "fluency": 3,
         "language": "rus-eng", "speaker": "B"},
    ]  # fmt: skip
    xtts = [{"id": "x3", "file_name": "audio/3.wav", "text": "我 go", "language": "cmn-eng", "speaker": "C"}]
    for folder, rows in ((root / "read" / "test", read), (root / "xtts" / "train", xtts)):
        write(folder / "metadata.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return Layout(
        "cs_fleurs",
        [
            ("read-test", "das ist ein test", "de-en"),
            ("read-test", "это good", "ru-en"),
            ("xtts-train", "我 go", "zh-en"),
        ],
        "cs-fleurs",
        spans={"это good": [["ru", 0, 3], ["en", 4, 8]], "das ist ein test": []},
    )


def common_voice(root: Path) -> Layout:
    header = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tvariant\tlocale\tsegment"
    accents = {"a": ("Português de Portugal", ""), "b": ("", "Portuguese (Brasil)"), "c": ("", "")}
    for split, names in (("train", "ab"), ("test", "c")):
        lines = [header]
        for name in names:
            tone(root / "pt" / "clips" / f"cv_{name}.mp3", 0.6, format="MP3")
            accent, variant = accents[name]
            lines.append(
                f'spk{name}\tcv_{name}.mp3\tDiga "{name}.\t2\t0\ttwenties\tfemale_feminine\t{accent}\t{variant}\tpt\t'
            )
        write(root / "pt" / f"{split}.tsv", "\n".join(lines) + "\n")
    return Layout(
        "common_voice",
        [("train", 'Diga "a.', "pt-PT"), ("train", 'Diga "b.', "pt-BR"), ("test", 'Diga "c.', "pt")],
        "common-voice-pt",
    )


def common_voice_european(root: Path) -> Layout:
    common_voice(root)
    options = {"variety": "pt-PT"}
    return Layout("common_voice", [("train", 'Diga "a.', "pt-PT")], "common-voice-pt-pt", options)


def common_voice_old(root: Path) -> Layout:
    tone(root / "pt" / "clips" / "cv_a.mp3", format="MP3")
    write(
        root / "pt" / "test.tsv",
        "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent\nspk\tcv_a.mp3\tOlá.\t2\t0\t\t\t\n",
    )
    return Layout("common_voice", [("test", "Olá.", "pt")], "common-voice-pt")


def mls(root: Path) -> Layout:
    folder = root / "mls_portuguese"
    write(folder / "metainfo.txt", " SPEAKER  | GENDER | PARTITION\n 11  |  M  | train |\n 12 | F | dev |\n")
    for split, name in (("train", "11_20_000001"), ("dev", "12_21_000001"), ("test", "11_22_000003")):
        speaker, book, _ = name.split("_")
        tone(folder / split / "audio" / speaker / book / f"{name}.flac")
        write(folder / split / "transcripts.txt", f"{name}\tera uma vez {book}\n")
    write(root / "mls_german" / "metainfo.txt", "junk that must not be read")
    return Layout(
        "mls",
        [("train", "era uma vez 20", "pt"), ("dev", "era uma vez 21", "pt"), ("test", "era uma vez 22", "pt")],
        "mls-portuguese",
    )


def mtedx(root: Path) -> Layout:
    for split in ("train", "valid", "test"):
        data = root / "pt-pt" / "data" / split
        tone(data / "wav" / f"{split}Talk.flac", 3.0)
        write(
            data / "vtt" / f"{split}Talk.pt.vtt",
            f"WEBVTT\nKind: captions\nLanguage: pt\n\n00:00:00.100 --> 00:00:01.000\nOlá, {split}!\n\n"
            "00:00:01.200 --> 00:00:02.300\n(Risos) Bem-vindos\na todos.\n\n00:00:02.300 --> 00:00:02.900\nmuito obrigado\n\n",
        )
    names = {"train": "train", "valid": "dev", "test": "test"}
    return Layout(
        "mtedx",
        [row for name, split in names.items() for row in
         ((split, f"Olá, {name}!", "pt"), (split, "Bem-vindos a todos.", "pt"), (split, "muito obrigado", "pt"))],
        "mtedx-pt",
        conversation=True,
    )  # fmt: skip


def fleurs(root: Path) -> Layout:
    for split in ("train", "dev", "test"):
        tone(root / "pt_br" / split / f"{split}1.wav")
        row = ["17", f"{split}1.wav", f"A Casa, {split}.", f"a casa {split}", "a | c |", "9600", "FEMALE"]
        write(root / "metadata" / "pt_br" / f"{split}.tsv", "\t".join(row) + "\n")
    return Layout("fleurs", [(split, f"a casa {split}", "pt-BR") for split in ("train", "dev", "test")], "fleurs-pt-br")


def coraa(root: Path) -> Layout:
    header = "file_path,task,variety,dataset,accent,speech_genre,speech_style,up_votes,down_votes,text"
    for split in ("train", "test"):
        tone(root / split / "nurc" / "a.wav")
        tone(root / split / "tedx" / "b.wav")
        write(
            root / f"metadata_{split}_final.csv",
            f"{header}\n{split}/nurc/a.wav,annotated,pt_br,NURC-Recife,Recife,dialogue,spontaneous,1,0,"
            f'"então, {split}"\n{split}/tedx/b.wav,annotated,pt_pt,TEDx,Misc,talk,prepared,1,0,boa tarde\n',
        )
    rows = [
        (split, text, tag)
        for split in ("train", "test")
        for text, tag in ((f"então, {split}", "pt-BR"), ("boa tarde", "pt-PT"))
    ]
    return Layout("coraa", rows, "coraa")


def coraa_parquet(root: Path) -> Layout:
    rows = [
        {"audio": {"bytes": encoded(), "path": None}, "text": text, "dataset": dataset, "variety": "pt_br"}
        for text, dataset in (("sim", "SP2010"), ("não", "ALIP"))
    ]
    parquet(root / "data" / "test-00000-of-00001.parquet", rows)
    return Layout("coraa", [("test", "não", "pt-BR")], "coraa-alip", {"dataset": "ALIP"})


def portugues_falado(root: Path) -> Layout:
    for country, name in (("Angola", "a"), ("Cabo Verde", "c")):
        tone(root / country / "audio" / "1.wav")
        write(root / country / "metadata.csv", f'file_name,text\naudio/1.wav,"pois, {name}"\n')
    return Layout("portugues_falado", [("all", "pois, a", "pt-AO"), ("all", "pois, c", "pt-CV")], "portugues-falado")


EXB = """<?xml version="1.0" encoding="UTF-8"?>
<basic-transcription>
 <head><meta-information><referenced-file url="sound\\fala.wav"/></meta-information>
  <speakertable><speaker id="SPK0"><abbreviation>X</abbreviation><sex value="f"/></speaker></speakertable></head>
 <basic-body>
  <common-timeline><tli id="T0" time="0.0"/><tli id="T1" time="0.9"/><tli id="T2" time="1.8"/></common-timeline>
  <tier id="TIE0" speaker="SPK0" category="v" type="t">
   <event start="T0" end="T1">bom ((ri)) dia</event>
   <event start="T1" end="T2">pois {pausa} é</event>
  </tier>
  <tier id="TIE1" speaker="SPK0" category="en" type="a"><event start="T0" end="T1">good day</event></tier>
 </basic-body>
</basic-transcription>
"""


def portugues_falado_exb(root: Path) -> Layout:
    tone(root / "Brasil" / "fala.wav", 2.0)
    write(root / "Brasil" / "fala.exb", EXB)
    rows = [("all", "bom dia", "pt-BR"), ("all", "pois é", "pt-BR")]
    return Layout("portugues_falado", rows, "portugues-falado", conversation=True)


TRS = """<?xml version="1.0" encoding="ISO-8859-1"?>
<!DOCTYPE Trans SYSTEM "trans-14.dtd">
<Trans scribe="x" audio_filename="aula" version="1" version_date="050101">
<Speakers>
<Speaker id="spk1" name="Docente João" check="no" type="male" dialect="native" accent="" scope="local"/>
<Speaker id="spk2" name="Aluna" check="no" type="female" dialect="native" accent="" scope="local"/>
</Speakers>
<Episode>
<Section type="report" startTime="0" endTime="3.5">
<Turn speaker="spk1" startTime="0" endTime="2.0" mode="spontaneous" fidelity="high" channel="studio">
<Sync time="0"/>
a ^equação <Event desc="b" type="noise" extent="instantaneous"/> não é lin- linear
<Sync time="1.2"/>

<Sync time="1.5"/>
então [tosse]
é isto
</Turn>
<Turn speaker="spk2" startTime="2.0" endTime="2.8">
<Sync time="2.0"/>
percebi
</Turn>
<Turn speaker="spk1 spk2" startTime="2.8" endTime="3.0">
<Sync time="2.8"/>
<Who nb="1"/>
sim
<Who nb="2"/>
não
</Turn>
</Section>
<Section type="nontrans" startTime="3.0" endTime="3.5">
<Turn startTime="3.0" endTime="3.5">
<Sync time="3.0"/>
isto fica de fora
</Turn>
</Section>
</Episode>
</Trans>
"""
TRS_TEXTS = ["a equação não é lin linear", "então é isto", "percebi"]


def lectra(root: Path) -> Layout:
    for split in ("train", "test"):
        wave = (samples(3.5) * 32767).astype("<i2")
        write(root / split / f"aula_{split}.trs", TRS, "iso-8859-1")
        (root / split / f"aula_{split}.raw").write_bytes(wave.tobytes())
    rows = [(split, text, "pt-PT") for split in ("train", "test") for text in TRS_TEXTS]
    return Layout("lectra", rows, "lectra", conversation=True)


def alert(root: Path) -> Layout:
    write(root / "trs" / "aula.trs", TRS.replace("ISO-8859-1", "UTF-8"), "utf-8")
    tone(root / "audio" / "aula.wav", 3.5)
    rows = [("all", text, "pt-PT") for text in TRS_TEXTS]
    return Layout("alert", rows, "alert", {"audio_dir": "audio"}, conversation=True)


def fala_bracarense(root: Path) -> Layout:
    row = {"audio": {"bytes": encoded(), "path": "a.wav"}, "transcription": "então vá"}
    parquet(root / "data" / "test_bracarense-00000-of-00001.parquet", [row])
    parquet(root / "data" / "train-00000-of-00001.parquet", [{**row, "transcription": "lido"}])
    return Layout("fala_bracarense", [("test", "então vá", "pt-PT")], "fala-bracarense")


def bd_publico(root: Path) -> Layout:
    for split in ("train", "test"):
        tone(root / split / "spk01" / "f1.wav")
        write(root / split / "spk01" / "f1.txt", f"O Governo de {split}.\n", "latin-1")
    rows = [(split, f"O Governo de {split}.", "pt-PT") for split in ("train", "test")]
    return Layout("bd_publico", rows, "bd-publico", {"encoding": "latin-1"})


def cng(root: Path) -> Layout:
    tone(root / "c001" / "p1.wav")
    tone(root / "c002" / "p2.wav")
    write(root / "prompts.txt", "p1 o gato mia\np2\ta bola é azul\n")
    return Layout("cng", [("all", "o gato mia", "pt-PT"), ("all", "a bola é azul", "pt-PT")], "cng")


def speechdat(root: Path) -> Layout:
    folder = root / "FIXED0PT" / "BLOCK00" / "SES0001"
    for name, packed in (("A00001S1", False), ("A00001S2", True)):
        stream = io.BytesIO()
        soundfile.write(stream, samples(0.8, 8000), 8000, format="RAW", subtype="ALAW")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.PTA{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(stream.getvalue()) if packed else stream.getvalue())
        write(
            folder / f"{name}.PTO",
            f"LHD: SAM, 6.0\nDBN: SpeechDat(II)\nSES: 0001\nCCD: {name[-2:]}\nSAM: 8000\nSNB: 1\nSBF:\nSSB: 1\nQNT: A-LAW\n"
            f"SCD: 00001\nSEX: F\nAGE: 33\nLBR: 0,6399,,,,não são {name}\nLBO: 0,3200,6399,[spk] não são **{name.lower()}~\n",
            "latin-1",
        )
    rows = [("all", f"não são {name}", "pt-PT") for name in ("a00001s1", "a00001s2")]
    return Layout("speechdat", rows, "speechdat-pt-pt")


def seame(root: Path) -> Layout:
    for kind, name in (("interview", "NI01MAX_0101"), ("conversation", "01NC01FBX_0101")):
        tone(root / "data" / kind / "audio" / f"{name}.flac", 4.0)
        write(
            root / "data" / kind / "transcript" / "phaseII" / f"{name}.txt",
            f"{name}\t100\t900\tCS\t我 go {kind} <noise>\n{name}\t1000\t1800\tZH\t好的\n{name}\t2000\t2900\tEN\tokay lah\n",
        )
    rows = [row for kind in ("interview", "conversation")
            for row in (("all", f"我 go {kind}", "zh-en"), ("all", "好的", "zh"), ("all", "okay lah", "en"))]  # fmt: skip
    return Layout("seame", rows, "seame", spans={"好的": [["zh", 0, 2]]}, conversation=True)


def seame_phase_one(root: Path) -> Layout:
    tone(root / "interview" / "audio" / "NI02FBX_0101.flac", 2.0)
    write(root / "interview" / "transcript" / "phaseI" / "NI02FBX_0101.txt", "NI02FBX_0101\t100\t900\t我 go there\n")
    return Layout("seame", [("all", "我 go there", "zh-en")], "seame", {"phase": "I"})


def talcs(root: Path) -> Layout:
    for split in ("train", "dev", "test"):
        folder = root / "TALCS_corpus" / f"{split}_set"
        tone(folder / "wav" / f"{split}_1.wav")
        write(folder / "label.txt", f"{split}_1 然后\uff0cHE IS ALWAYS\uff0cFINISHI\uff2eG-UP {split}\n")
    rows = [(split, f"然后 HE IS ALWAYS FINISHING UP {split}", "zh-en") for split in ("train", "dev", "test")]
    return Layout("talcs", rows, "talcs")


def mucs(root: Path) -> Layout:
    for split in ("train", "test"):
        folder = root / "Hindi-English" / split
        tone(folder / f"{split}rec.wav", 3.0)
        transcripts = folder / "transcripts"
        write(transcripts / "wav.scp", f"{split}rec {split}rec.wav\n")
        write(transcripts / "segments", f"s_{split}_1 {split}rec 0.1 1.1\ns_{split}_2 {split}rec 1.2 -1\n")
        write(transcripts / "text", f"s_{split}_1 हम software में\ns_{split}_2 यह {split}\n")
        write(transcripts / "utt2spk", f"s_{split}_1 s\ns_{split}_2 s\n")
    rows = [
        row
        for split in ("train", "test")
        for row in ((split, "हम software में", "hi-en"), (split, f"यह {split}", "hi-en"))
    ]
    return Layout(
        "mucs",
        rows,
        "mucs-hi-en",
        spans={"हम software में": [["hi", 0, 2], ["en", 3, 11], ["hi", 12, 15]]},
        conversation=True,
    )


def mucs_bengali(root: Path) -> Layout:
    folder = root / "test"
    tone(folder / "r.wav", 2.0)
    write(folder / "transcripts" / "wav.scp", "r r.wav\n")
    write(folder / "transcripts" / "segments", "r_1 r 0.1 1.1\n")
    write(folder / "transcripts" / "text", "r_1 আমরা file\n")
    spans = {"আমরা file": [["bn", 0, 4], ["en", 5, 9]]}
    return Layout("mucs", [("test", "আমরা file", "bn-en")], "mucs-bn-en", {"pair": "bn-en"}, spans)


FISHER = "20050910_182032_217_fsp"
TDF_HEADER = (
    "file;unicode\tchannel;int\tstart;float\tend;float\tspeaker;unicode\tspeakerType;unicode\tspeakerDialect;unicode\t"
    "transcript;unicode\n;;MM sectionTypes\t[None, None]\n;;MM sectionBoundaries\t[0.0, 99.0]\n"
)


def fisher(root: Path) -> Layout:
    tone(root / "LDC2010S01" / "data" / f"{FISHER}.sph", 4.0, 8000, 2, format="NIST", subtype="ULAW")
    lines = [
        (0, 0.2, 1.2, "sp1", "male", 'fui al <foreign lang="English"> mall </foreign> ayer'),
        (1, 1.0, 1.9, "sp2", "female", "<laugh>  no (( me )) digas"),
        (0, 2.0, 3.0, "sp1", "male", 'un <foreing lang="Englsh"> deadline </foreing>'),
    ]
    write(
        root / "LDC2010T04" / "data" / f"{FISHER}.tdf",
        TDF_HEADER
        + "".join(f"{FISHER}.sph\t{c}\t{a}\t{b}\t{s}\t{x}\tnative\t{t}\t0\t0\n" for c, a, b, s, x, t in lines),
    )
    write(root / "LDC2010T04" / "docs" / "fsp_call.tbl", "h\n217,x,PIN1,a,b,c,d,e,PIN2\n")
    return Layout(
        "fisher_es_en",
        [("all", "fui al mall ayer", "es-en"), ("all", "no me digas", "es"), ("all", "un deadline", "es-en")],
        "fisher-es-en",
        spans={"fui al mall ayer": [["es", 0, 6], ["en", 7, 11], ["es", 12, 16]]},
        conversation=True,
    )


CHA = """@UTF8
@Begin
@Languages:\tspa, eng
@Participants:\tMAR Maria Adult, JOE Joe Adult
@ID:\tspa, eng|Miami|MAR|25;|female|||Adult|||
@Media:\tsastre1, audio
*MAR:\tpero el boss@s:eng [/] dijo que &=laughs no .\t\x15100_1100\x15
%mor:\tx
*JOE:\t[- eng] I know &-uh +/.
\t\x151200_1900\x15
*MAR:\tyeah@s xxx (a)demás .\t\x152000_2900\x15
@End
"""


def bangor_miami(root: Path) -> Layout:
    tone(root / "sastre1.wav", 3.0)
    write(root / "sastre1.cha", CHA)
    return Layout(
        "bangor_miami",
        [("all", "pero el boss dijo que no", "es-en"), ("all", "I know", "en"), ("all", "yeah además", "es-en")],
        "bangor-miami",
        spans={"pero el boss dijo que no": [["es", 0, 7], ["en", 8, 12], ["es", 13, 24]], "I know": [["en", 0, 6]]},
        conversation=True,
    )


def arzen(root: Path) -> Layout:
    folder = root / "test"
    tone(folder / "audio" / "r.wav", 2.0)
    write(folder / "wav.scp", "r /somewhere/else/r.wav\n")
    write(folder / "segments", "r_1 r 0.1 1.1\n")
    write(folder / "text", "r_1 انا at work\n")
    write(folder / "utt2spk", "r_1 s\n")
    return Layout(
        "arzen", [("test", "انا at work", "arz-en")], "arzen", spans={"انا at work": [["arz", 0, 3], ["en", 4, 11]]}
    )


def decm(root: Path) -> Layout:
    for level in ("low", "high"):
        tone(root / level / "spk" / "a.wav")
        write(root / level / "spk" / "a.txt", f"wir machen <en>a meeting</en> {level}\n")
    texts = {level: f"wir machen a meeting {level}" for level in ("low", "high")}
    spans = {texts["low"]: [["de", 0, 10], ["en", 11, 20], ["de", 21, 24]]}
    return Layout("decm", [(level, text, "de-en") for level, text in texts.items()], "decm", spans=spans)


def covost2(root: Path) -> Layout:
    lines = {"train": "a", "dev": "b", "test": "c"}
    for name in lines.values():
        tone(root / "pt" / "clips" / f"{name}.mp3", format="MP3")
    write(
        root / "pt" / "covost_v2.pt_en.tsv",
        "path\ttranslation\tsplit\n"
        + "".join(f"{name}.mp3\tHello {name}.\t{split}\n" for split, name in lines.items()),
    )
    write(
        root / "pt" / "validated.tsv",
        "client_id\tpath\tsentence\tup_votes\n"
        + "".join(f"s\t{name}.mp3\tOlá {name}.\t2\n" for name in lines.values()),
    )
    return Layout("covost2", [(split, f"Olá {name}.", "pt") for split, name in lines.items()], "covost2-pt-en")


def asterisk(root: Path) -> Layout:
    sounds = root / "usr" / "share" / "asterisk" / "sounds" / "en_US_f_Allison"
    prompts = {
        "activated": "Activated",
        "digits/1": "one",
        "vm-msg": "You have a new message",
        "beep": "[this is a beep]",
    }
    for name in prompts:
        tone(sounds / f"{name}.wav", rate=8000)
    text = (
        "; comment: not a prompt\n" + "".join(f"{name}: {words}\n" for name, words in prompts.items()) + "gone: gone\n"
    )
    document = root / "usr" / "share" / "doc" / "asterisk-core-sounds-en" / "core-sounds-en.txt.gz"
    document.parent.mkdir(parents=True)
    document.write_bytes(gzip.compress(text.encode()))
    from nemo_merge.corpora.splits import split_of

    spoken = ["Activated", "one", "You have a new message"]
    return Layout("asterisk", [(split_of(words.lower()), words, "en-US") for words in spoken], "asterisk-en")


def kaldi(root: Path) -> Layout:
    folder = root / "data" / "train"
    tone(root / "wav" / "u1.wav")
    tone(root / "corpus" / "u3.wav")
    tone(root / "wav" / "call.wav", 2.0, 8000, 2)
    write(
        folder / "wav.scp",
        "u1 /old/machine/u1.wav\nu2 sph2pipe -f wav -p -c 2 /old/machine/call.wav |\nu3 corpus/u3.wav\n",
    )
    write(folder / "text", "u1 olá mundo\nu2\toutra vez\n\nu3  e mais\n")
    write(folder / "utt2spk", "u1 s1\nu2 s2\n")
    write(folder / "spk2gender", "s1 m\ns2 f\n")
    options = {"name": "meu_corpus", "language": "pt-PT", "domain": "telephone", "audio_dir": str(root / "wav")}
    rows = [
        ("data-train", "olá mundo", "pt-PT"),
        ("data-train", "outra vez", "pt-PT"),
        ("data-train", "e mais", "pt-PT"),
    ]
    return Layout("kaldi", rows, "meu-corpus", options)


def nemo_jsonl(root: Path) -> Layout:
    tone(root / "audio" / "a.wav", 2.0)
    tone(root / "audio" / "b.wav")
    rows = [
        {"audio_filepath": "audio/a.wav", "offset": 0.1, "duration": 0.8, "text": "primeiro", "speaker": "x"},
        {
            "audio_filepath": "audio/a.wav",
            "offset": 1.0,
            "duration": 0.8,
            "text": "segundo",
            "lang": "pt-BR",
            "kept": 1,
        },
        {"audio_filepath": "audio/b.wav", "duration": 0.6, "text": "terceiro"},
        {"audio_filepath": "audio/gone.wav", "duration": 0.6, "text": "fora", "_skipme": True},
    ]
    write(root / "train.json", "".join(json.dumps(row) + "\n" for row in rows))
    options = {"name": "nosso", "language": "pt-PT"}
    out = [("train", "primeiro", "pt-PT"), ("train", "segundo", "pt-BR"), ("train", "terceiro", "pt-PT")]
    return Layout("nemo_jsonl", out, "nosso", options, conversation=True)


def hf_audio(root: Path) -> Layout:
    tone(root / "train" / "a.wav")
    write(root / "train" / "metadata.csv", 'file_name,frase,falante\na.wav,"sim, claro",f1\n')
    options = {"name": "pasta", "language": "pt-PT", "text": "frase", "speaker": "falante"}
    return Layout("hf_audio", [("train", "sim, claro", "pt-PT")], "pasta", options)


def ep_mini(root: Path) -> Layout:
    rows = []
    for split, text in (("train", "o meeting foi ontem"), ("test", "bom dia")):
        spans = [["pt-PT", 0, 1], ["en", 2, 9], ["pt-PT", 10, 19]] if split == "train" else [["pt-PT", 0, 7]]
        audio = f"{split}/code_switching-{split}-0.flac"
        tone(root / "code_switching" / audio)
        rows.append(
            {"id": Path(audio).stem, "split": split, "audio": audio, "samples": 9600, "text": text,
             "language_spans": spans, "speaker": "code_switching-f2"}
        )  # fmt: skip
    write(root / "code_switching" / "utterances.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write(root / "code_switching" / "made.json", json.dumps({"train": 1, "dev": 0, "test": 1}))
    return Layout(
        "ep_mini",
        [("train", "o meeting foi ontem", "pt-en"), ("test", "bom dia", "pt-PT")],
        "ep-mini-code-switching",
        {"subset": "code_switching"},
        domain="code_switching",
    )


def _own(recipe: str, make: Callable[[Path], Layout], **options: Any) -> Callable[[Path], Layout]:
    """The same files through the recipe of their format."""

    def layout(root: Path) -> Layout:
        made = make(root)
        rows = [("all", text, language) for _, text, language in made.rows]
        own = {key: str(value).format(root=root) for key, value in options.items()}
        return Layout(recipe, rows, "x", {"name": "x", "language": "pt-PT", **own}, conversation=made.conversation)

    layout.__name__ = f"{recipe}_format"
    return layout


def exmaralda(root: Path) -> Layout:
    tone(root / "fala.wav", 2.0)
    write(root / "fala.exb", EXB)
    rows = [("all", "bom dia", "pt-PT"), ("all", "pois é", "pt-PT")]
    return Layout("exmaralda", rows, "x", {"name": "x", "language": "pt-PT"}, conversation=True)


def tdf(root: Path) -> Layout:
    tone(root / "a.wav", 2.0, channels=2)
    write(root / "a.tdf", TDF_HEADER + "a.wav\t1\t0.1\t1.2\ts\tmale\tnative\tbuenos días\t0\n")
    return Layout("tdf", [("all", "buenos días", "es")], "x", {"name": "x", "language": "es"})


def seame_tsv(root: Path) -> Layout:
    tone(root / "audio" / "r.wav", 2.0)
    write(root / "r.txt", "r\t100\t900\tCS\t我 go\n")
    return Layout("seame_tsv", [("all", "我 go", "zh-en")], "x", {"name": "x", "language": "zh"})


LAYOUTS = [
    camoes_si, falar, ascend, cs_fleurs, common_voice, common_voice_european, common_voice_old, mls, mtedx, fleurs, coraa,
    coraa_parquet, portugues_falado, portugues_falado_exb, lectra, alert, fala_bracarense, bd_publico, cng, speechdat,
    seame, seame_phase_one, talcs, mucs, mucs_bengali, fisher, bangor_miami, arzen, decm, covost2, asterisk, kaldi,
    nemo_jsonl, hf_audio, exmaralda, tdf, seame_tsv, ep_mini, _own("transcriber", alert, audio_dir="{root}/audio"),
    _own("chat", bangor_miami), _own("sam", speechdat), _own("folder", cng),
]  # fmt: skip
