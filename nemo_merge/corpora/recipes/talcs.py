"""TALCS: Mandarin and English in online teaching, 587 hours (Li et al., Interspeech 2022, arXiv 2206.13135).

Lhotse's recipe ``tal_csasr`` deletes full-width commas, so that the English words beside them grow together, calls
every utterance Chinese and a speaker of its own, and names the splits ``train_set``. Here marks become spaces,
full-width letters ASCII ones, and the original line is kept.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from ..languages import HAN, LATIN, spans_by_script
from ..registry import Corpus, register
from ..sessions import Audio, Layout, Session, Utterance, single
from ..source import Source

_MARKS = re.compile(r"[^\w\s']|_")
CORPUS = register(
    Corpus(
        name="talcs",
        title="TALCS",
        domain="lectures",
        languages=("zh", "en"),
        variety="mainland China, code-switched",
        licence="own terms of TAL Education",
        access="open",
        source="ai.100tal.com/dataset",
        layout="TALCS_corpus/{train,dev,test}_set/{wav/*.wav,label.txt}",
        splits=("train", "dev", "test"),
        citation="Li et al., Interspeech 2022, arXiv 2206.13135",
    )
)


@CORPUS.recipe
def prepare_talcs(source: Source) -> Layout:
    """Online lessons with spans by script; speakers are not named."""
    root = source.root / "TALCS_corpus" if (source.root / "TALCS_corpus").is_dir() else source.root
    folders = {split: root / f"{split}_set" for split in ("train", "dev", "test")}
    return Layout({split: _sessions(source, path) for split, path in folders.items() if path.is_dir()})


def _sessions(source: Source, folder: Path) -> Iterator[Session]:
    for place, line in source.lines(folder / "label.txt"):
        name, _, raw = line.strip().partition(" ")
        if not name:
            continue
        text = clean(raw)
        spans = spans_by_script(text, {HAN: "zh", LATIN: "en"})
        yield single(Audio(folder / "wav" / f"{name}.wav"), Utterance(name, place, text, raw.strip(), spans=spans))


def clean(raw: str) -> str:
    r"""Marks as spaces, full-width letters as ASCII, straight apostrophes.

    Example:
        >>> clean("HE IS ALWAYS\uff0cFINISHI\uff2eG.")
        'HE IS ALWAYS FINISHING'
    """
    text = unicodedata.normalize("NFKC", raw).replace("\u2018", "'").replace("\u2019", "'")
    return " ".join(_MARKS.sub(" ", text).split())
