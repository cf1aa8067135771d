"""CORAA ASR v1.1: spontaneous and prepared Brazilian speech (Candido Junior et al., 2022, arXiv 2110.15731).

Columns: ``file_path, task, variety, dataset, accent, speech_genre, speech_style, up_votes, down_votes, votes_for_...,
text``, in ``metadata_<split>_final.csv`` beside the unpacked audio, or as parquet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..importers.hf_audio import Columns, find_parts, hf_sessions
from ..registry import Corpus, register
from ..sessions import Audio, Layout, Session, Utterance, single
from ..source import Source, require

_KEPT = ("task", "variety", "dataset", "accent", "speech_genre", "speech_style")
CORPUS = register(
    Corpus(
        name="coraa",
        title="CORAA ASR v1.1",
        domain="mixed",
        languages=("pt-BR",),
        variety="Brazilian, and some European talks of TEDx",
        licence="CC BY-NC-ND 4.0",
        access="open",
        source="github.com/nilc-nlp/CORAA",
        layout="metadata_{train,dev,test}_final.csv and the unpacked folders train/, dev/, test/; or parquet files",
        splits=("train", "dev", "test"),
        citation="Candido Junior et al., Language Resources and Evaluation 2022, arXiv 2110.15731",
        note="The licence does not allow derived works: made for evaluation.",
    )
)


@CORPUS.recipe
def prepare_coraa(source: Source, *, dataset: str | None = None) -> Layout:
    """Five Brazilian corpora.

    Args:
        source: the corpus.
        dataset: keep one of them: ``ALIP``, ``C-ORAL-BRASIL I``, ``NURC-Recife``, ``SP2010`` or ``TEDx``.
    """
    tables = {path.stem.split("_")[1]: path for path in source.find("metadata_*_final.csv")}
    if tables:
        splits = {split: _sessions(source, path, dataset) for split, path in tables.items()}
    else:
        columns = Columns("text", keep=_KEPT)

        def chosen(utterance: Utterance, row: dict[str, object]) -> Utterance | None:
            utterance.language = _language(str(row.get("variety") or ""))
            return utterance if dataset in (None, row.get("dataset")) else None

        splits = {
            split: hf_sessions(source, files, columns, f"{split}-", chosen)
            for split, files in find_parts(source).items()
        }
    return Layout(splits, stem=f"coraa-{dataset.lower()}" if dataset else None)


def _sessions(source: Source, table: Path, dataset: str | None) -> Iterator[Session]:
    for number, (place, row) in enumerate(source.rows(table, ",", quoted=True)):
        if number == 0:
            require(row, ("file_path", "text"), str(table))
        if dataset not in (None, row.get("dataset")):
            continue
        path = Path(row["file_path"])
        yield single(
            Audio(table.parent / path),
            Utterance(
                id="-".join(path.with_suffix("").parts),
                place=place,
                text=" ".join(row["text"].split()),
                raw=row["text"],
                language=_language(row.get("variety", "")),
                custom={name: row[name] for name in _KEPT if row.get(name)},
            ),
        )


def _language(variety: str) -> str | None:
    return {"pt_br": "pt-BR", "pt_pt": "pt-PT"}.get(variety.lower())
