"""Reads a folder in whichever of the common layouts it is: for corpora whose own layout was not seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import ConfigError
from ..sessions import Layout, Session
from ..source import Source
from .exmaralda import exb_sessions
from .hf_audio import Columns, find_parts, hf_sessions
from .kaldi import kaldi_sessions
from .nemo_jsonl import nemo_sessions
from .paired import AUDIO, list_of_texts, paired_sessions
from .transcriber import trs_sessions

LAYOUTS = (
    "one folder per split (or none) with a Kaldi data directory, Transcriber .trs, EXMARaLDA .exb, a Hugging Face "
    "audio folder or parquet files, NeMo manifests (one .json or .jsonl per split), or audio with a .txt beside each "
    "file or one prompts.txt of ids and texts"
)
_SPLITS = ("train", "dev", "test", "valid", "validation", "eval")
_LISTS = ("prompts.txt", "transcripts.txt", "text.txt", "transcriptions.txt")


def bound_folder(source: Source, *, encoding: str | None = None, text: str = "text") -> Layout:
    """Sessions of a folder in a common layout, by split.

    Args:
        source: the folder.
        encoding: of transcripts.
        text: column of the transcript in tables.

    Raises:
        ConfigError: it is in none of them.
    """
    root = source.root
    folders = [root] if _is_data(root) else sorted(path for path in root.iterdir() if path.is_dir() and _is_data(path))
    splits = {}
    for folder in folders:
        name = "all" if folder == root else folder.name
        for split, sessions in _read(source, folder, encoding, text).items():
            splits[split if name == "all" else name if split == "all" else f"{name}-{split}"] = sessions
    if not splits:
        raise ConfigError(f"{root}: not in a layout that is known here; expected {LAYOUTS}")
    return Layout(splits)


def _is_data(folder: Path) -> bool:
    """Whether the folder itself, not its subfolders one by one, is a data set."""
    names = {path.name for path in folder.iterdir()}
    suffixes = {path.suffix.lower() for path in folder.iterdir() if path.is_file()}
    subfolders = [path for path in folder.iterdir() if path.is_dir()]
    return bool(
        {"wav.scp", *_LISTS} & names
        or {".trs", ".exb", ".parquet", ".jsonl", ".json", ".wav", ".flac"} & suffixes
        or any("metadata" in name for name in names)
        or (subfolders and all(path.name.lower() not in _SPLITS and _holds_audio(path) for path in subfolders))
    )


def _holds_audio(speaker: Path) -> bool:
    return any(path.suffix.lower() in (".wav", ".flac") for path in speaker.iterdir())


def _read(source: Source, folder: Path, encoding: str | None, text: str) -> dict[str, Iterator[Session]]:
    if (folder / "wav.scp").is_file():
        return {"all": kaldi_sessions(source, folder)}
    if files := source.find("*.trs", under=folder):
        return {"all": trs_sessions(source, files, encoding=encoding)}
    if files := source.find("*.exb", under=folder):
        return {"all": exb_sessions(source, files, encoding=encoding)}
    if parts := find_parts(source, folder):
        return {name: hf_sessions(source, files, Columns(text), f"{name}-") for name, files in parts.items()}
    if files := [path for path in source.find("*.json", "*.jsonl", under=folder) if path.parent == folder]:
        return {path.stem: nemo_sessions(source, path, text=text) for path in files}
    if source.find(*AUDIO, under=folder):
        listed = next((folder / name for name in _LISTS if (folder / name).is_file()), None)
        texts = list_of_texts(source, listed, encoding) if listed else None
        return {"all": paired_sessions(source, folder, encoding=encoding, transcripts=texts)}
    return {}
