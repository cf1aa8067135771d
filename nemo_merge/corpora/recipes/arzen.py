"""ArzEn: interviews in Egyptian Arabic and English (Hamed et al., LREC 2020), 12 hours.

Given out after a form; its files were not seen. Transcripts come with segments, so a Kaldi data directory for each
split is the nearest common layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..importers.detect import LAYOUTS, bound_folder
from ..languages import ARABIC, LATIN, spans_by_script
from ..registry import Corpus, register
from ..sessions import Layout, Session
from ..source import Source

CORPUS = register(
    Corpus(
        name="arzen",
        title="ArzEn",
        domain="interviews",
        languages=("arz", "en"),
        variety="Egyptian, code-switched",
        licence="not stated",
        access="gated",
        source="the project's site, by a form; splits: ArzEn-ST",
        layout=LAYOUTS,
        splits=("train", "dev", "test"),
        citation="Hamed et al., LREC 2020",
        status="layout_unknown",
    )
)


@CORPUS.recipe
def prepare_arzen(source: Source, *, encoding: str | None = None, text: str = "text") -> Layout:
    """Interviews in a common layout, with spans by script.

    Args:
        source: the corpus.
        encoding: of the transcripts.
        text: column of the transcript in tables.
    """
    found = bound_folder(source, encoding=encoding, text=text)
    return Layout({split: _with_spans(sessions) for split, sessions in found.splits.items()})


def _with_spans(sessions: Iterable[Session]) -> Iterator[Session]:
    for session in sessions:
        for utterance in session.utterances:
            utterance.spans = spans_by_script(utterance.text, {ARABIC: "arz", LATIN: "en"})
        yield session
