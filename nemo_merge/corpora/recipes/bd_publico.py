"""BD-PUBLICO: sentences of a newspaper read by 120 students (Neto et al., Eurospeech 1997), and read news like it.

On compact discs with a lexicon; their tree was not seen. Bring the corpus into any common layout.
"""

from __future__ import annotations

from ..importers.detect import LAYOUTS, bound_folder
from ..registry import Corpus, register
from ..sessions import Layout
from ..source import Source

CORPUS = register(
    Corpus(
        name="bd_publico",
        title="BD-PUBLICO and other read news",
        domain="read_news",
        languages=("pt-PT",),
        variety="European",
        licence="held by its makers",
        access="in_house",
        source="INESC-ID",
        layout=LAYOUTS,
        splits=("train", "dev", "test"),
        citation="Neto et al., Eurospeech 1997",
        status="layout_unknown",
    )
)


@CORPUS.recipe
def prepare_bd_publico(source: Source, *, encoding: str | None = None, text: str = "text") -> Layout:
    """Read news in a common layout.

    Args:
        source: the corpus.
        encoding: of the transcripts.
        text: column of the transcript in tables.
    """
    return bound_folder(source, encoding=encoding, text=text)
