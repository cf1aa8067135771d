"""ASCEND: spontaneous Mandarin and English conversations in Hong Kong (Lovenia et al., LREC 2022, arXiv 2112.06223)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..importers.hf_audio import Columns, find_parts, hf_sessions
from ..languages import HAN, LATIN, spans_by_script
from ..registry import Corpus, register
from ..sessions import Layout, Utterance
from ..source import Source
from ._downloads import huggingface

CORPUS = register(
    Corpus(
        name="ascend",
        title="ASCEND",
        domain="conversational",
        languages=("zh", "en"),
        variety="Hong Kong, code-switched",
        licence="CC BY-SA 4.0",
        access="open",
        source="Hugging Face CAiRE/ASCEND",
        layout="a copy of the data set with its parquet files",
        splits=("train", "dev", "test"),
        citation="Lovenia et al., LREC 2022, arXiv 2112.06223",
    )
)
_TAGS = {"zh": "zh", "en": "en", "mixed": "zh-en"}


@CORPUS.recipe
def prepare_ascend(source: Source) -> Layout:
    """Conversations with spans by script; the annotators' language of an utterance is kept."""
    columns = Columns(
        "transcription", id="id", speaker="original_speaker_id", language="language", keep=("session_id", "topic")
    )
    return Layout(
        {
            split: hf_sessions(source, files, columns, f"ascend-{split}-", _with_spans)
            for split, files in find_parts(source).items()
        }
    )


def _with_spans(utterance: Utterance, _: dict[str, Any]) -> Utterance:
    utterance.language = _TAGS.get(utterance.language or "")
    utterance.spans = spans_by_script(utterance.text, {HAN: "zh", LATIN: "en"})
    return utterance


@CORPUS.downloader
def download_ascend(target_dir: str | Path, force_download: bool = False) -> Path:
    """Copies the data set from the Hugging Face hub."""
    return huggingface("CAiRE/ASCEND", target_dir, force=force_download)
