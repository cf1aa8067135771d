"""ALERT: television news in European Portuguese (Neto et al., Eurospeech 2003), and news in the same form.

Transcriber ``.trs`` after the conventions of the LDC's Hub-4, recorded at 44.1 or 32 kHz and down-sampled to 16 kHz.
"""

from __future__ import annotations

from pathlib import Path

from ..importers.transcriber import trs_sessions
from ..registry import Corpus, register
from ..sessions import Headerless, Layout
from ..source import Source
from .lectra import split_of

CORPUS = register(
    Corpus(
        name="alert",
        title="ALERT and other broadcast news in Transcriber format",
        domain="broadcast_news",
        languages=("pt-PT",),
        variety="European",
        licence="held by its makers",
        access="in_house",
        source="INESC-ID and RTP; in no public catalogue",
        layout="<programme>.trs with <programme>.wav (.flac, .sph, .raw), in folders train/, dev/, test/ or one",
        splits=("train", "dev", "test"),
        citation="Neto et al., Eurospeech 2003",
        note="Fidelity, channel, mode and dialect of a turn are kept, so that Hub-4's conditions can be told apart.",
    )
)


@CORPUS.recipe
def prepare_alert(
    source: Source, *, rate: int = 16000, encoding: str | None = None, audio_dir: str | None = None
) -> Layout:
    """Programmes; sections that were not transcribed and people who speak at once are left out.

    Args:
        source: the corpus.
        rate: sampling rate of ``.raw`` audio, Hz.
        encoding: overrides what the transcripts declare.
        audio_dir: folder of the audio below the corpus, if it is not beside the transcripts.
    """
    by_split: dict[str, list[Path]] = {}
    for path in source.find("*.trs"):
        by_split.setdefault(split_of(path.relative_to(source.root)), []).append(path)
    folder = source.folder(audio_dir) if audio_dir else None
    return Layout(
        {
            split: trs_sessions(source, files, folder, encoding=encoding, headerless=Headerless(rate))
            for split, files in by_split.items()
        }
    )
