"""MUCS 2021, second task: tutorials in Hindi or Bengali with English (Diwan et al., Interspeech 2021).

Kaldi directories whose ``wav.scp`` holds bare file names, beside long recordings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import ConfigError, did_you_mean
from ..importers.kaldi import kaldi_sessions
from ..languages import BENGALI, DEVANAGARI, LATIN, spans_by_script
from ..registry import Corpus, register
from ..sessions import Layout, Session
from ..source import Source
from ._downloads import archive

PAIRS = {"hi-en": ("Hindi-English", DEVANAGARI), "bn-en": ("Bengali-English", BENGALI)}
CORPUS = register(
    Corpus(
        name="mucs",
        title="MUCS 2021, code-switching task",
        domain="lectures",
        languages=("hi", "en"),
        variety="India, code-switched",
        licence="CC BY-SA 4.0",
        access="open",
        source="OpenSLR 104",
        layout="[<pair>/]{train,test}/*.wav and {train,test}/transcripts/{wav.scp,segments,text,utt2spk}",
        splits=("train", "test"),
        citation="Diwan et al., Interspeech 2021, arXiv 2104.00235",
        note="pair=hi-en (the default) or bn-en.",
    )
)


@CORPUS.recipe
def prepare_mucs(source: Source, *, pair: str = "hi-en") -> Layout:
    """Spoken tutorials of one pair with spans by script.

    Args:
        source: the corpus.
        pair: ``hi-en`` or ``bn-en``.
    """
    if pair not in PAIRS:
        raise ConfigError(f"mucs has no pair {pair!r}{did_you_mean(pair, PAIRS)}")
    name, script = PAIRS[pair]
    language = pair.split("-")[0]
    roots = [source.root / choice for choice in (name, name.lower(), pair, ".")]
    root = next((path for path in roots if (path / "train").is_dir() or (path / "test").is_dir()), source.root)
    folders = {split: root / split for split in ("train", "test") if (root / split).is_dir()}
    return Layout(
        {split: _sessions(source, path, {script: language, LATIN: "en"}) for split, path in folders.items()},
        stem=f"mucs-{pair}",
        languages=(language, "en"),
    )


def _sessions(source: Source, folder: Path, scripts: dict[str, str]) -> Iterator[Session]:
    tables = folder / "transcripts" if (folder / "transcripts").is_dir() else folder
    for session in kaldi_sessions(source, tables, [folder]):
        for utterance in session.utterances:
            utterance.spans = spans_by_script(utterance.text, scripts)
        yield session


@CORPUS.downloader
def download_mucs(target_dir: str | Path, force_download: bool = False, pair: str = "hi-en") -> Path:
    """Fetches training and test set of one pair from OpenSLR."""
    name = PAIRS[pair][0]
    for split in ("train", "test"):
        url = f"https://www.openslr.org/resources/104/{name}_{split}.tar.gz"
        archive(url, Path(target_dir) / name, force_download=force_download)
    return Path(target_dir) / name
