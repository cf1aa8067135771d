"""FLEURS: sentences of FLoRes read in 102 languages (Conneau et al., SLT 2022, arXiv 2205.12446).

Reads what Lhotse's ``download_fleurs`` leaves. Lhotse's recipe fails without an output folder, and takes the prompt
and a counter for the speaker, which the data do not name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..registry import Corpus, register
from ..sessions import Audio, Layout, Session, Utterance, single
from ..source import Source

CORPUS = register(
    Corpus(
        name="fleurs",
        title="FLEURS",
        domain="read",
        languages=("pt-BR",),
        variety="Brazilian",
        licence="CC BY 4.0",
        access="open",
        source="Hugging Face google/fleurs",
        layout="<language>/{train,dev,test}/*.wav and metadata/<language>/{train,dev,test}.tsv",
        splits=("train", "dev", "test"),
        citation="Conneau et al., SLT 2022, arXiv 2205.12446",
        note="Any of the 102 languages by language=<code>; languages without spaces are scored by characters.",
    )
)


@CORPUS.recipe
def prepare_fleurs(source: Source, *, language: str = "pt_br", text: str = "transcription") -> Layout:
    """Read sentences of one language.

    Args:
        source: the corpus.
        language: FLEURS' code, for example ``pt_br`` or ``cmn_hans_cn``.
        text: ``transcription`` (lower case, without punctuation) or ``raw`` (as written).
    """
    tables = source.folder(f"metadata/{language}", f"fleurs/metadata/{language}")
    audio = tables.parent.parent / language
    splits = [split for split in ("train", "dev", "test") if (tables / f"{split}.tsv").is_file()]
    return Layout(
        {split: _sessions(source, tables / f"{split}.tsv", audio / split, text == "raw") for split in splits},
        stem=f"fleurs-{language}",
        languages=(bcp47(language),),
        variety=None if language == "pt_br" else "",
    )


def _sessions(source: Source, table: Path, folder: Path, as_written: bool) -> Iterator[Session]:
    for place, line in source.lines(table):
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) != 7:
            source.problems.add("row", place, f"{len(cells)} cells; a row of FLEURS has 7")
            continue
        prompt, name, raw, transcription, _, _, gender = cells
        yield single(
            Audio(folder / name),
            Utterance(
                id=f"{prompt}_{Path(name).stem}",
                place=place,
                text=" ".join((raw if as_written else transcription).split()),
                raw=raw,
                gender={"MALE": "Male", "FEMALE": "Female"}.get(gender.strip()),
                custom={"prompt": prompt},
            ),
        )


def bcp47(code: str) -> str:
    """BCP-47 tag of a code of FLEURS.

    Example:
        >>> bcp47("pt_br"), bcp47("cmn_hans_cn")
        ('pt-BR', 'cmn-Hans-CN')
    """
    language, *rest = code.split("_")
    return "-".join([language, *(part.title() if len(part) == 4 else part.upper() for part in rest)])


@CORPUS.downloader
def download_fleurs(target_dir: str | Path, force_download: bool = False, language: str = "pt_br") -> Path:
    """Fetches one language with Lhotse's download, which needs the ``datasets`` package."""
    from lhotse.recipes.fleurs import download_fleurs as download

    return Path(download(target_dir, [language], force_download))
