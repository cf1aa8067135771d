"""Perfil Sociolinguístico da Fala Bracarense: interviews with speakers of Braga (University of Minho).

Publicly it is part of data sets on the Hugging Face hub that mix it with read and synthetic speech; their test split of
real interviews is ``test_bracarense``.
"""

from __future__ import annotations

import re

from ..importers.hf_audio import Columns, find_parts, hf_sessions
from ..registry import Corpus, register
from ..sessions import Layout
from ..source import Source

CORPUS = register(
    Corpus(
        name="fala_bracarense",
        title="Perfil Sociolinguístico da Fala Bracarense",
        domain="interviews",
        languages=("pt-PT",),
        variety="European, Minho",
        licence="not known: see the data set's card",
        access="gated",
        source="University of Minho; in mixes on Hugging Face by my-north-ai",
        layout="a copy of the data set with its parquet files, of which one has bracarense in its name",
        splits=("test",),
        citation="Barbosa et al., Perfil Sociolinguístico da Fala Bracarense, CEHUM",
        note="Columns differ between copies: text=... names that of the transcript.",
    )
)


@CORPUS.recipe
def prepare_fala_bracarense(source: Source, *, text: str = "transcription", id: str | None = None) -> Layout:
    """Interviews; other parts of the mixed data sets are left out.

    Args:
        source: the corpus.
        text: column of the transcript.
        id: column of the id, if there is one.
    """
    columns = Columns(text, id=id, speaker="speaker_id")
    parts = {split: files for split, files in find_parts(source).items() if "bracarense" in split.lower()}
    named = {re.sub("[_-]?bracarense[_-]?", "", split): files for split, files in parts.items()}
    return Layout(
        {split: hf_sessions(source, files, columns, f"bracarense-{split}-") for split, files in named.items()}
    )
