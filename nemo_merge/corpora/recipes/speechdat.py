"""SpeechDat: telephone calls at 8 kHz A-law, with a SAM label file for each recorded item.

The tree is ``FIXED0PT/BLOCK00/SES0000/`` with ``A00000<item>.PTO`` (label) and ``.PTA`` (audio, perhaps gzipped); the
last letter of the language's suffix tells the two apart.
"""

from __future__ import annotations

from ..importers.sam import sam_sessions
from ..registry import Corpus, register
from ..sessions import Layout
from ..source import Source

CORPUS = register(
    Corpus(
        name="speechdat",
        title="SpeechDat(M) and SpeechDat(II), Portuguese, and others of the family",
        domain="telephone",
        languages=("pt-PT",),
        variety="European",
        licence="ELRA licence",
        access="elra",
        source="ELRA-S0068 (SpeechDat(M))",
        layout="FIXED0PT/BLOCKnn/SESnnnn/ with .PTO label files and .PTA audio (.gz or not)",
        splits=("all",),
        citation="Höge et al., LREC 1998",
        note="Other languages by suffix=, e.g. suffix=ES.",
    )
)


@CORPUS.recipe
def prepare_speechdat(
    source: Source, *, suffix: str = "PT", language: str = "pt-PT", encoding: str = "latin-1", items: str | None = None
) -> Layout:
    """Telephone calls.

    Args:
        source: the corpus.
        suffix: the two letters of the language in file names.
        language: BCP-47 tag.
        encoding: of label files.
        items: keep items whose code begins with one of these letters, for example ``S`` (sentences) or ``SW``.
    """
    audio = (*(f".{suffix}{letter}{packed}" for letter in "Aa" for packed in ("", ".gz")), ".wav", ".flac")
    labels = source.find(f"*.{suffix}O")
    if items:
        labels = [path for path in labels if path.stem[-2:-1].upper() in items.upper()]
    if not labels:
        return Layout({})
    sessions = sam_sessions(source, labels, encoding=encoding, audio_suffixes=audio)
    return Layout({"all": sessions}, stem=f"speechdat-{language.lower()}", languages=(language,))
