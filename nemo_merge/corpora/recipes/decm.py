"""DECM: German with English insertions, three test sets by how much is switched (Ugan et al., 2024).

The audio is of video sites, the transcripts are given on request; the files were not seen. Bring each test set into a
folder of its own: ``low``, ``mid``, ``high``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from ..importers.detect import LAYOUTS, bound_folder
from ..languages import spans_from_tags
from ..registry import Corpus, register
from ..sessions import Layout, Session
from ..source import Source

CORPUS = register(
    Corpus(
        name="decm",
        title="DECM",
        domain="talks",
        languages=("de", "en"),
        variety="code-switched",
        licence="not stated",
        access="gated",
        source="its authors, on request",
        layout=LAYOUTS,
        splits=("low", "mid", "high"),
        citation="Ugan et al., 2024",
        status="layout_unknown",
        note="Both languages are written in Latin letters: mark English as <en>...</en> for language spans.",
    )
)


@CORPUS.recipe
def prepare_decm(source: Source, *, encoding: str | None = None, text: str = "text") -> Layout:
    """Talks in a common layout; ``<en>...</en>`` in a transcript marks English.

    Args:
        source: the corpus.
        encoding: of the transcripts.
        text: column of the transcript in tables.
    """
    found = bound_folder(source, encoding=encoding, text=text)
    return Layout({split: _with_spans(source, sessions) for split, sessions in found.splits.items()})


def _with_spans(source: Source, sessions: Iterable[Session]) -> Iterator[Session]:
    for session in sessions:
        kept = []
        for utterance in session.utterances:
            marked = utterance.text.replace("<en>", '<foreign lang="en">').replace("</en>", "</foreign>")
            if marked != utterance.text:
                try:
                    repaired = partial(source.problems.add, "tag", utterance.place)
                    utterance.text, utterance.spans = spans_from_tags(marked, "foreign", "de", {"en": "en"}, repaired)
                except ValueError as error:
                    source.problems.add("row", utterance.place, str(error))
                    continue
            kept.append(utterance)
        if kept:
            session.utterances = kept
            yield session
