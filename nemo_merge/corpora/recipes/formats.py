"""Your own corpora by format: what they are called, their domain and language are options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

from ..importers.chat import cha_sessions
from ..importers.detect import LAYOUTS, bound_folder
from ..importers.exmaralda import exb_sessions
from ..importers.hf_audio import Columns, find_parts, hf_sessions
from ..importers.kaldi import kaldi_sessions
from ..importers.nemo_jsonl import nemo_sessions
from ..importers.sam import sam_sessions
from ..importers.seame import seame_sessions
from ..importers.tdf import tdf_sessions
from ..importers.transcriber import trs_sessions
from ..registry import Corpus, register
from ..sessions import Headerless, Layout, Splits
from ..source import Source

_COMMON = """
    name: what the corpus is called: first part of the names of the manifests.
    language: BCP-47 tag, such as pt-PT.
    domain: by which experts and test sets are grouped, such as telephone.
"""


def _format(name: str, title: str, layout: str) -> Callable[..., Callable[..., object]]:
    """Decorator that makes a recipe of a function that returns splits, with the options ``name, language, domain``."""

    def decorate(read: Callable[..., Splits]) -> Callable[..., object]:
        corpus = register(
            Corpus(
                name=name,
                title=title,
                domain="any",
                languages=("und",),
                licence="your own",
                access="own",
                source="your own files",
                layout=layout,
                splits=("all",),
                citation="",
                kind="format",
            )
        )

        def labelled(source: Source, **options: object) -> Layout:
            given = {key: str(options.pop(key, "") or "") for key in ("name", "language", "domain")}
            return Layout(
                read(source, **options),
                stem=given["name"] or None,
                domain=given["domain"] or None,
                languages=(given["language"],) if given["language"] else None,
            )

        labelled.__name__ = read.__name__
        labelled.__doc__ = inspect.cleandoc(read.__doc__ or "") + _COMMON
        common = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation="str")
            for key, default in (
                ("name", inspect.Parameter.empty),
                ("language", inspect.Parameter.empty),
                ("domain", ""),
            )
        ]
        parameters = [*inspect.signature(read).parameters.values(), *common]
        labelled.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return corpus.recipe(labelled)

    return decorate


@_format(
    "hf_audio", "Hugging Face audio data sets", "parquet files, or metadata.jsonl or .csv with file_name, and audio"
)
def prepare_hf_audio(
    source: Source, *, text: str = "text", audio: str = "audio", id: str = "", speaker: str = "", gender: str = "",
    keep: tuple[str, ...] = (),
) -> Splits:  # fmt: skip
    """Parquet files or audio folders.

    Args:
        source: the corpus.
        text: column of the transcript.
        audio: column of the audio; audio folders name their files in ``file_name``.
        id: column of the id.
        speaker: column of the speaker.
        gender: column of the gender.
        keep: columns that supervisions keep in ``custom``.
    """
    columns = Columns(text, audio, id or None, speaker or None, gender or None, None, keep)
    return {split: hf_sessions(source, files, columns, f"{split}-") for split, files in find_parts(source).items()}


@_format("kaldi", "Kaldi data directories", "wav.scp and text, perhaps segments, utt2spk; or a folder of such folders")
def prepare_kaldi(source: Source, *, audio_dir: str = "") -> Splits:
    """Data directories.

    Args:
        source: the corpus.
        audio_dir: where files of ``wav.scp`` that do not exist are looked for by name.
    """
    folders = sorted(path.parent for path in source.find("wav.scp"))
    audio = [Path(audio_dir)] if audio_dir else None
    names = ["all" if path == source.root else "-".join(path.relative_to(source.root).parts) for path in folders]
    return {name: kaldi_sessions(source, path, audio) for name, path in zip(names, folders, strict=True)}


@_format("transcriber", "Transcriber .trs", "*.trs with audio of the same name")
def prepare_transcriber(source: Source, *, encoding: str = "", rate: int = 16000, audio_dir: str = "") -> Splits:
    """Transcripts with turns.

    Args:
        source: the corpus.
        encoding: overrides what the transcripts declare.
        rate: sampling rate of ``.raw`` audio, Hz.
        audio_dir: folder of the audio, if it is not beside the transcripts.
    """
    files = source.find("*.trs")
    return (
        {
            "all": trs_sessions(
                source,
                files,
                Path(audio_dir) if audio_dir else None,
                encoding=encoding or None,
                headerless=Headerless(rate),
            )
        }
        if files
        else {}
    )


@_format("chat", "CHAT .cha", "*.cha with audio of the same name")
def prepare_chat(source: Source, *, audio_dir: str = "") -> Splits:
    """Transcripts of TalkBank, with the language of each word.

    Args:
        source: the corpus.
        audio_dir: folder of the audio, if it is not beside the transcripts.
    """
    files = source.find("*.cha")
    return {"all": cha_sessions(source, files, Path(audio_dir) if audio_dir else None)} if files else {}


@_format("exmaralda", "EXMARaLDA .exb", "*.exb with the audio that they name")
def prepare_exmaralda(source: Source, *, encoding: str = "") -> Splits:
    """Basic transcriptions.

    Args:
        source: the corpus.
        encoding: overrides what the transcripts declare.
    """
    files = source.find("*.exb")
    return {"all": exb_sessions(source, files, encoding=encoding or None)} if files else {}


@_format("sam", "SAM label files", "label files such as *.PTO with audio *.PTA")
def prepare_sam(source: Source, *, labels: str = "*.??O", encoding: str = "latin-1") -> Splits:
    """Label files of one recorded item each; the audio has the suffix with an A in place of the O.

    Args:
        source: the corpus.
        labels: pattern of their names.
        encoding: of the label files.
    """
    files = source.find(labels)
    suffixes = dict.fromkeys(
        f"{path.suffix[:-1]}{letter}{packed}" for path in files for letter in "Aa" for packed in ("", ".gz")
    )
    audio = (*suffixes, ".wav", ".flac")
    return {"all": sam_sessions(source, files, encoding=encoding, audio_suffixes=audio)} if files else {}


@_format("tdf", "LDC .tdf", "*.tdf with audio of the same name")
def prepare_tdf(source: Source) -> Splits:
    """Tab-separated segments; the text is taken as it is.

    Args:
        source: the corpus.
    """
    files = source.find("*.tdf")
    audio = {path.stem: path for path in source.find("*.sph", "*.wav", "*.flac")}
    return (
        {
            "all": tdf_sessions(
                source, files, lambda name: audio.get(name, source.root / f"{name}.sph"), lambda _, text: (text, ())
            )
        }
        if files
        else {}
    )


@_format("seame_tsv", "Tables of segments as SEAME's", "*.txt of recording, start, end (ms), [language], text; audio/")
def prepare_seame_tsv(source: Source, *, audio_dir: str = "audio") -> Splits:
    """Tables of code-switched Mandarin and English.

    Args:
        source: the corpus.
        audio_dir: folder of the audio below the corpus.
    """
    files = source.find("*.txt")
    return {"all": seame_sessions(source, files, [source.root / audio_dir, source.root])} if files else {}


@_format("nemo_jsonl", "NeMo manifests", "one .json or .jsonl, or a folder with one for each split")
def prepare_nemo_jsonl(source: Source, *, text: str = "text") -> Splits:
    """Manifests of NeMo.

    Args:
        source: the corpus.
        text: key of the transcript.
    """
    if source.root.is_file():
        return {"all": nemo_sessions(source, source.root, text=text)}
    files = source.find("*.json", "*.jsonl")
    return {path.stem: nemo_sessions(source, path, text=text) for path in files}


@_format("folder", "A folder in any common layout", LAYOUTS)
def prepare_folder(source: Source, *, encoding: str = "", text: str = "text") -> Splits:
    """Looks which common layout it is.

    Args:
        source: the corpus.
        encoding: of the transcripts.
        text: column of the transcript in tables.
    """
    return bound_folder(source, encoding=encoding or None, text=text).splits
