"""CS-FLEURS: code-switched sentences of FLEURS in 113 pairs, read and synthesised (Yan et al., Interspeech 2025).

``load_dataset`` fails on it, because its subsets have different columns; here every ``metadata.jsonl`` is read by
itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..importers.hf_audio import Columns, find_parts, hf_sessions
from ..languages import spans_by_script
from ..registry import Corpus, register
from ..sessions import Layout, Utterance
from ..source import Source
from ._downloads import huggingface

CORPUS = register(
    Corpus(
        name="cs_fleurs",
        title="CS-FLEURS",
        domain="read",
        languages=("mul", "en"),
        variety="code-switched",
        licence="CC BY-NC 4.0",
        access="open",
        source="Hugging Face byan/cs-fleurs",
        layout="{read/test,xtts/{train,test1,test2},mms/test}/metadata.jsonl with its audio",
        splits=("read-test", "xtts-train", "xtts-test1", "xtts-test2", "mms-test"),
        citation="Yan et al., Interspeech 2025",
        note="pair=deu-eng keeps one pair. Spans are marked where the languages differ in script. xtts and mms are "
        "synthetic.",
    )
)
TAGS = {
    "ara": "ar", "arb": "ar", "ben": "bn", "ces": "cs", "cmn": "zh", "deu": "de", "eng": "en", "fra": "fr", "hin": "hi",
    "hun": "hu", "ita": "it", "jpn": "ja", "kor": "ko", "nld": "nl", "pol": "pl", "por": "pt", "rus": "ru", "spa": "es",
    "tam": "ta", "tel": "te", "tha": "th", "tur": "tr", "vie": "vi", "zho": "zh",
}  # fmt: skip
"""BCP-47 tags of the codes that have a shorter one."""
SCRIPTS = {
    "ar": ("ARABIC",), "bn": ("BENGALI",), "hi": ("DEVANAGARI",), "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL", "CJK"), "ru": ("CYRILLIC",), "ta": ("TAMIL",), "te": ("TELUGU",), "th": ("THAI",), "zh": ("CJK",),
}  # fmt: skip
"""Scripts of the languages that are not written in Latin letters."""


@CORPUS.recipe
def prepare_cs_fleurs(source: Source, *, pair: str | None = None) -> Layout:
    """Sentences of one pair of languages, or of all.

    Args:
        source: the corpus.
        pair: as the corpus names it, the language of the sentence first: ``deu-eng``.
    """
    columns = Columns("text", audio="file_name", id="id", speaker="speaker", language="language", keep=("fluency",))

    def changed(utterance: Utterance, row: dict[str, Any]) -> Utterance | None:
        if pair not in (None, row.get("language")):
            return None
        codes = (utterance.language or "").split("-")
        tags = [TAGS.get(code, code) for code in codes]
        utterance.language = "-".join(tags) or None
        utterance.custom["pair"] = row.get("language")
        if tags[0] in SCRIPTS:
            by_script = {script: tags[0] for script in SCRIPTS[tags[0]]} | {"LATIN": tags[-1]}
            utterance.spans = spans_by_script(utterance.text, by_script)
        return utterance

    languages = tuple(TAGS.get(code, code) for code in pair.split("-")) if pair else None
    return Layout(
        {split: hf_sessions(source, files, columns, change=changed) for split, files in find_parts(source).items()},
        stem=f"cs-fleurs-{pair}" if pair else None,
        languages=languages,
    )


@CORPUS.downloader
def download_cs_fleurs(
    target_dir: str | Path, force_download: bool = False, subsets: tuple[str, ...] = ("read/test",)
) -> Path:
    """Copies subsets from the Hugging Face hub; by default the sentences that people read."""
    patterns = [f"{subset}/*" for subset in subsets]
    return huggingface("byan/cs-fleurs", target_dir, allow=["README.md", *patterns], force=force_download)
