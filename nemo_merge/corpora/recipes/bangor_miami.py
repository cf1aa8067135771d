"""Bangor Miami: conversations in Spanish and English (Deuchar et al., 2014), in CHAT with the language of each word."""

from __future__ import annotations

from ..importers.chat import cha_sessions
from ..registry import Corpus, register
from ..sessions import Layout
from ..source import Source

CORPUS = register(
    Corpus(
        name="bangor_miami",
        title="Bangor Miami",
        domain="conversational",
        languages=("es", "en"),
        variety="Miami, code-switched",
        licence="GPL 3 or later (bangortalk), or the terms of TalkBank",
        access="open",
        source="bangortalk.org.uk; TalkBank, biling/Bangor/Miami",
        layout="**/*.cha with audio of the same name, beside them or in the folder that audio_dir=... names",
        splits=("all",),
        citation="Deuchar et al., in Advances in the Study of Bilingualism, 2014",
        note="The terms of TalkBank do not allow the training of language models.",
    )
)


@CORPUS.recipe
def prepare_bangor_miami(source: Source, *, audio_dir: str | None = None) -> Layout:
    """Conversations, with spans from the tags of words.

    Args:
        source: the corpus.
        audio_dir: folder of the audio below the corpus.
    """
    files = source.find("*.cha")
    folder = source.folder(audio_dir) if audio_dir else None
    return Layout({"all": cha_sessions(source, files, folder)} if files else {})
