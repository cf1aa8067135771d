"""CNG: prompted speech of 510 Portuguese children of 3 to 10 years (Hämäläinen et al., TSD 2013), and corpora like it.

Not public, and its files were not seen. Bring the corpus into any common layout: prompts read by children mostly come
as a list of ids and texts, with a folder of audio for each child.
"""

from __future__ import annotations

from ..importers.detect import LAYOUTS, bound_folder
from ..registry import Corpus, register
from ..sessions import Layout
from ..source import Source

CORPUS = register(
    Corpus(
        name="cng",
        title="CNG and other prompted speech of children",
        domain="children",
        languages=("pt-PT",),
        variety="European",
        licence="held by its makers",
        access="in_house",
        source="Microsoft Language Development Center",
        layout=LAYOUTS,
        splits=("train", "dev", "test"),
        citation="Hämäläinen et al., TSD 2013",
        status="layout_unknown",
    )
)


@CORPUS.recipe
def prepare_cng(source: Source, *, encoding: str | None = None, text: str = "text") -> Layout:
    """Prompted speech of children in a common layout.

    Args:
        source: the corpus.
        encoding: of the transcripts.
        text: column of the transcript in tables.
    """
    return bound_folder(source, encoding=encoding, text=text)
