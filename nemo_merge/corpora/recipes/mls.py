"""Multilingual LibriSpeech: audiobooks of LibriVox (Pratap et al., Interspeech 2020, arXiv 2012.03411).

Lhotse's recipe prepares every language folder that it finds, looks for Opus files unless told, and searches all
recordings for the duration of each; this one takes one language and whichever format is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..registry import Corpus, register
from ..sessions import Audio, Layout, Session, Utterance, single
from ..source import Source
from ._downloads import archive

LANGUAGES = {
    "portuguese": "pt", "english": "en", "german": "de", "dutch": "nl", "spanish": "es", "french": "fr",
    "italian": "it", "polish": "pl",
}  # fmt: skip
CORPUS = register(
    Corpus(
        name="mls",
        title="Multilingual LibriSpeech",
        domain="audiobooks",
        languages=("pt",),
        variety="mostly Brazilian",
        licence="CC BY 4.0",
        access="open",
        source="OpenSLR 94",
        layout="mls_<language>[_opus]/{train,dev,test}/ with audio/, transcripts.txt, and metainfo.txt above",
        splits=("train", "dev", "test"),
        citation="Pratap et al., Interspeech 2020, arXiv 2012.03411",
    )
)


@CORPUS.recipe
def prepare_mls(source: Source, *, language: str = "portuguese") -> Layout:
    """Audiobooks of one language, from FLAC or Opus.

    Args:
        source: the corpus.
        language: ``portuguese``, ``english`` ...
    """
    root = (
        source.root
        if (source.root / "metainfo.txt").is_file()
        else source.folder(f"mls_{language}", f"mls_{language}_opus")
    )
    genders = {}
    for _, line in source.lines(root / "metainfo.txt"):
        speaker, _, rest = line.partition("|")
        genders[speaker.strip()] = {"M": "Male", "F": "Female"}.get(rest.split("|")[0].strip())
    splits = [split for split in ("train", "dev", "test") if (root / split / "transcripts.txt").is_file()]
    return Layout(
        {split: _sessions(source, root / split, genders) for split in splits},
        stem=f"mls-{language}",
        languages=(LANGUAGES.get(language, language),),
        variety=None if language == "portuguese" else "",
    )


def _sessions(source: Source, folder: Path, genders: dict[str, str | None]) -> Iterator[Session]:
    suffix = ".flac"
    for place, line in source.lines(folder / "transcripts.txt"):
        name, tab, text = line.partition("\t")
        parts = name.split("_")
        if not tab or len(parts) != 3:
            source.problems.add("row", place, "not speaker_book_number, a tab and the text")
            continue
        path = folder / "audio" / parts[0] / parts[1] / name
        if not path.with_suffix(suffix).is_file() and path.with_suffix(".opus").is_file():
            suffix = ".opus"
        yield single(
            Audio(path.with_suffix(suffix)),
            Utterance(
                name, place, text.strip(), speaker=parts[0], gender=genders.get(parts[0]), custom={"book": parts[1]}
            ),
        )


@CORPUS.downloader
def download_mls(target_dir: str | Path, force_download: bool = False, language: str = "portuguese") -> Path:
    """Fetches one language as Opus from OpenSLR."""
    url = f"https://dl.fbaipublicfiles.com/mls/mls_{language}_opus.tar.gz"
    return archive(url, target_dir, force_download=force_download)
