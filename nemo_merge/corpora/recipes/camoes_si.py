"""CAMOES-SI: sociolinguistic interviews in European Portuguese, the public test set of the CAMOES benchmark.

Carvalho et al., "CAMOES: A Comprehensive Automatic Speech Recognition Benchmark for European Portuguese", ASRU 2025,
arXiv 2508.19721. Columns: ``audio``, ``reference``, ``ID``, ``speaker_id``, ``dataset``.
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
        name="camoes_si",
        title="CAMOES-SI",
        domain="interviews",
        languages=("pt-PT",),
        variety="European",
        licence="reported both as CC BY 4.0 and as CC BY-NC 4.0",
        access="open",
        source="Hugging Face inesc-id/camoes_SI",
        layout="a copy of the data set with its parquet files",
        splits=("test",),
        citation="Carvalho et al., ASRU 2025, arXiv 2508.19721",
        note="Read the licence on the data set's card: users report two.",
    )
)


@CORPUS.recipe
def prepare_camoes_si(source: Source) -> Layout:
    """Sociolinguistic interviews; the sub-corpus of each utterance is kept as ``dataset``."""
    columns = Columns("reference", id="ID", speaker="speaker_id", keep=("dataset",))
    return Layout({split: hf_sessions(source, files, columns) for split, files in find_parts(source).items()})


@CORPUS.downloader
def download_camoes_si(target_dir: str | Path, force_download: bool = False) -> Path:
    """Copies the data set from the Hugging Face hub."""
    return huggingface("inesc-id/camoes_SI", target_dir, force=force_download)
