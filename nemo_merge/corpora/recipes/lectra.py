"""LECTRA: university lectures in European Portuguese (Trancoso et al., LREC 2008).

Two files for each lecture: headerless ``.raw`` audio and a Transcriber ``.trs`` in ISO-8859-1 with disfluencies marked.
"""

from __future__ import annotations

from pathlib import Path

from ..importers.transcriber import trs_sessions
from ..registry import Corpus, register
from ..sessions import Headerless, Layout
from ..source import Source

CORPUS = register(
    Corpus(
        name="lectra",
        title="LECTRA",
        domain="lectures",
        languages=("pt-PT",),
        variety="European",
        licence="ELRA licence",
        access="elra",
        source="ELRA-S0366, ISLRN 298-379-572-530-5",
        layout="<lecture>.raw (or .wav) with <lecture>.trs, in folders train/, dev/, test/ or one",
        splits=("train", "dev", "test"),
        citation="Trancoso et al., LREC 2008",
        note="The rate of the .raw files is not in them: rate=... if it is not 16000.",
    )
)


@CORPUS.recipe
def prepare_lectra(source: Source, *, rate: int = 16000, encoding: str | None = None) -> Layout:
    """Lectures.

    Args:
        source: the corpus.
        rate: sampling rate of the headerless audio, Hz.
        encoding: overrides what the transcripts declare.
    """
    by_split: dict[str, list[Path]] = {}
    for path in source.find("*.trs"):
        by_split.setdefault(split_of(path.relative_to(source.root)), []).append(path)
    headerless = Headerless(rate)
    return Layout(
        {
            split: trs_sessions(source, files, encoding=encoding, headerless=headerless)
            for split, files in by_split.items()
        }
    )


def split_of(path: Path) -> str:
    """The split that a folder of a path is named after, or ``all``.

    Example:
        >>> split_of(Path("Test/trs/a.trs")), split_of(Path("a.trs"))
        ('test', 'all')
    """
    names = {"train": "train", "training": "train", "dev": "dev", "devel": "dev", "development": "dev", "test": "test",
             "eval": "test"}  # fmt: skip
    return next((names[part.lower()] for part in path.parts[:-1] if part.lower() in names), "all")
