"""Português Falado: documentos autênticos: Portuguese from Portugal, Brazil, Africa and Asia, 86 recordings.

The original is wav with EXMARaLDA transcripts; copies on the Hugging Face hub are audio folders with ``metadata.csv``
in a folder for each country.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from ..importers.exmaralda import exb_sessions
from ..importers.hf_audio import Columns, find_parts, hf_sessions
from ..registry import Corpus, register
from ..sessions import Layout, Session, Utterance
from ..source import Source

COUNTRIES = {
    "portugal": "pt-PT", "brasil": "pt-BR", "brazil": "pt-BR", "angola": "pt-AO", "cabo": "pt-CV", "cape": "pt-CV",
    "guine": "pt-GW", "guinea": "pt-GW", "mocambique": "pt-MZ", "mozambique": "pt-MZ", "sao": "pt-ST", "macau": "pt-MO",
    "macao": "pt-MO", "goa": "pt-IN", "timor": "pt-TL",
}  # fmt: skip
"""BCP-47 tag by a word, without accents, of the name of a country's folder."""
CORPUS = register(
    Corpus(
        name="portugues_falado",
        title="Português Falado: documentos autênticos",
        domain="conversational",
        languages=("pt",),
        variety="Portugal, Brazil, Angola, Cape Verde, Guinea-Bissau, Mozambique, São Tomé, Macao, Goa, Timor",
        licence="not known: see the catalogue or the data set's card",
        access="open",
        source="ELRA; copies on Hugging Face: Jarbas/SpokenPortugueseGeographicalSocialVarieties",
        layout="a folder for each country with .exb and .wav files, or with metadata.csv and audio",
        splits=("all",),
        citation="Bacelar do Nascimento (ed.), Português Falado, CLUL and Instituto Camões, 2001",
        note="country=angola keeps one; each utterance has the tag of its country.",
    )
)


@CORPUS.recipe
def prepare_portugues_falado(
    source: Source, *, country: str | None = None, text: str = "text", encoding: str | None = None
) -> Layout:
    """Conversations and monologues of ten countries.

    Args:
        source: the corpus.
        country: keep one: the name of its folder.
        text: column of the transcript in ``metadata.csv``.
        encoding: overrides what EXMARaLDA files declare.
    """
    root = source.root / country if country else source.root
    stem = f"portugues-falado-{country.lower()}" if country else None
    if files := source.find("*.exb", under=root):
        sessions = exb_sessions(source, files, encoding=encoding)
        return Layout({"all": (_located(session) for session in sessions)}, stem)

    def located(utterance: Utterance, _: dict[str, Any]) -> Utterance:
        utterance.language = language_of(utterance.place)
        return utterance

    parts = [path for files in find_parts(source, root).values() for path in files]
    if not parts:
        return Layout({})
    return Layout({"all": hf_sessions(source, parts, Columns(text), change=located)}, stem)


def _located(session: Session) -> Session:
    for utterance in session.utterances:
        utterance.language = language_of(utterance.place)
    return session


def language_of(place: str) -> str | None:
    """Tag of the country that a path names.

    Example:
        >>> language_of("data/Cabo Verde/metadata.csv, line 2")
        'pt-CV'
    """
    plain = "".join(c for c in unicodedata.normalize("NFD", place.lower()) if not unicodedata.combining(c))
    for part in reversed(plain.split("/")):
        for word in re.findall(r"[a-z]+", part):
            if word in COUNTRIES:
                return COUNTRIES[word]
    return None
