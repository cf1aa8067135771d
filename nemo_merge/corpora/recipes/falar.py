"""FalAR: two decades of the Portuguese parliament, 5,800 hours.

Data set ``inesc-id/FalAR``; splits ``train_0`` to ``train_15``, ``dev``, ``test``; columns ``ID, wav, transcription,
speaker_id, duration, gender, age``; 16 kHz.
"""

from __future__ import annotations

from pathlib import Path

from ..importers.hf_audio import Columns, find_parts, hf_sessions
from ..registry import Corpus, register
from ..sessions import Layout
from ..source import Source
from ._downloads import huggingface

CORPUS = register(
    Corpus(
        name="falar",
        title="FalAR",
        domain="parliament",
        languages=("pt-PT",),
        variety="European",
        licence="not known: see the data set's card",
        access="open",
        source="Hugging Face inesc-id/FalAR",
        layout="a copy of the data set with its parquet files",
        splits=(*(f"train-{part}" for part in range(16)), "dev", "test"),
        citation="Hugging Face inesc-id/FalAR",
        note="Embedded audio is written as files below OUT/audio: 5,800 hours of 16 kHz audio are some 670 GB.",
    )
)


@CORPUS.recipe
def prepare_falar(source: Source) -> Layout:
    """Speeches in parliament; the 16 parts of the training set are splits of their own, so that any can be left out."""
    columns = Columns("transcription", audio="wav", id="ID", speaker="speaker_id", gender="gender", keep=("age",))
    return Layout({split: hf_sessions(source, files, columns) for split, files in find_parts(source).items()})


@CORPUS.downloader
def download_falar(
    target_dir: str | Path, force_download: bool = False, splits: tuple[str, ...] = ("dev", "test")
) -> Path:
    """Copies splits from the Hugging Face hub, by default the small ones; ``train_0`` to ``train_15`` are the rest."""
    patterns = [f"*{split.replace('-', '_')}*" for split in splits]
    return huggingface("inesc-id/FalAR", target_dir, allow=["README.md", *patterns], force=force_download)
