"""Multilingual TEDx: talks with subtitles (Salesky et al., Interspeech 2021, arXiv 2102.01757).

Lhotse's recipe calls the development set ``valid``, fails without an output folder, and keeps only a normalised text:
lower case, without punctuation, words with other characters as ``<unk>``, which drops their lines. Here the text is
that of the subtitles without noises in brackets, and the subtitle itself is kept too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..importers.vtt import vtt_utterances
from ..registry import Corpus, register
from ..sessions import Audio, Layout, Session
from ..source import Source

CORPUS = register(
    Corpus(
        name="mtedx",
        title="Multilingual TEDx",
        domain="talks",
        languages=("pt",),
        variety="mostly Brazilian",
        licence="CC BY-NC-ND 4.0",
        access="open",
        source="OpenSLR 100",
        layout="<language>-<language>/data/{train,valid,test}/{wav/*.flac,vtt/*.vtt}",
        splits=("train", "dev", "test"),
        citation="Salesky et al., Interspeech 2021, arXiv 2102.01757",
    )
)


@CORPUS.recipe
def prepare_mtedx(source: Source, *, language: str = "pt") -> Layout:
    """Talks of one language; the speaker of a talk is its recording.

    Args:
        source: the corpus.
        language: ``pt``, ``es``, ``fr``, ``it``, ``ru``, ``el``, ``ar`` or ``de``.
    """
    pair = f"{language}-{language}"
    data = source.folder(f"{pair}/data", "data", f"mtedx_corpus/{pair}/data")
    names = {"train": "train", "valid": "dev", "test": "test"}
    return Layout(
        {split: _sessions(source, data / name) for name, split in names.items() if (data / name / "vtt").is_dir()},
        stem=f"mtedx-{language}",
        languages=(language,),
        variety=None if language == "pt" else "",
    )


def _sessions(source: Source, folder: Path) -> Iterator[Session]:
    for path in source.find("*.vtt", under=folder / "vtt"):
        recording = path.name.split(".")[0]
        utterances = list(vtt_utterances(source, path, recording))
        if utterances:
            yield Session(recording, Audio(folder / "wav" / f"{recording}.flac"), utterances)


@CORPUS.downloader
def download_mtedx(target_dir: str | Path, force_download: bool = False, language: str = "pt") -> Path:
    """Fetches one language from OpenSLR with Lhotse's download."""
    from lhotse.recipes.mtedx import download_mtedx as download

    if force_download:
        (Path(target_dir) / "mtedx_corpus" / f".{language}.completed").unlink(missing_ok=True)
    return Path(download(target_dir, [language]))
