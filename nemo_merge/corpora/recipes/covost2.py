"""CoVoST 2: translations of Common Voice 4 (Wang et al., Interspeech 2021, arXiv 2007.10310).

``covost_v2.<source>_<target>.tsv`` gives path, translation and split; the sentence and the speaker stand in the
``validated.tsv`` of Common Voice. Files for each split that hold the sentence too are read as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..registry import Corpus, register
from ..sessions import Audio, Layout, Session, Utterance, single
from ..source import Source, require

CORPUS = register(
    Corpus(
        name="covost2",
        title="CoVoST 2",
        domain="read_crowd",
        languages=("pt",),
        variety="all",
        licence="CC BY-NC 4.0 (translations), CC0 (audio)",
        access="open",
        source="github.com/facebookresearch/covost, and Common Voice 4",
        layout="covost_v2.<source>_<target>[.<split>].tsv, validated.tsv and clips/, in one folder",
        splits=("train", "dev", "test"),
        citation="Wang et al., Interspeech 2021, arXiv 2007.10310",
        note="The translation is custom.translation, its language custom.translation_language.",
    )
)


@CORPUS.recipe
def prepare_covost2(source: Source, *, language: str = "pt", target: str = "en") -> Layout:
    """Sentences of one language with their translation.

    Args:
        source: the corpus.
        language: that is spoken.
        target: language of the translation.
    """
    root = source.root if (source.root / "clips").is_dir() else source.folder(language)
    name = f"covost_v2.{language}_{target}"
    tables = {split: root / f"{name}.{split}.tsv" for split in ("train", "dev", "test")}
    tables = {split: path for split, path in tables.items() if path.is_file()}
    if not tables:
        common = root / f"{name}.tsv"
        if not common.is_file():
            return Layout({})
        tables = dict.fromkeys(("train", "dev", "test"), common)
    return Layout(
        {split: _sessions(source, path, split, target, root) for split, path in tables.items()},
        stem=f"covost2-{language}-{target}".lower(),
        languages=(language,),
    )


def _sessions(source: Source, table: Path, split: str, target: str, root: Path) -> Iterator[Session]:
    sentences: dict[str, tuple[str, str]] | None = None
    # A table of all splits is read for each of them: its broken rows are told with the first.
    reader = source.again() if split != "train" and not table.stem.endswith(split) else source
    for number, (place, row) in enumerate(reader.rows(table)):
        if number == 0:
            require(row, ("path", "translation"), str(table))
        if row.get("split", split) != split:
            continue
        if "sentence" in row:
            sentence, speaker = row["sentence"], row.get("client_id") or None
        else:
            if sentences is None:
                sentences = _sentences(reader, root / "validated.tsv")
            if row["path"] not in sentences:
                source.problems.add("missing_text", place, f"{row['path']} is not in {root / 'validated.tsv'}")
                continue
            sentence, speaker = sentences[row["path"]]
        if not row["translation"].strip():
            source.problems.add("empty_text", place, f"{row['path']} has no translation")
            continue
        yield single(
            Audio(root / "clips" / row["path"]),
            Utterance(
                id=Path(row["path"]).stem,
                place=place,
                text=" ".join(sentence.split()),
                raw=sentence,
                speaker=speaker,
                custom={"translation": " ".join(row["translation"].split()), "translation_language": target},
            ),
        )


def _sentences(source: Source, path: Path) -> dict[str, tuple[str, str]]:
    sentences = {}
    for number, (_, row) in enumerate(source.rows(path)):
        if number == 0:
            require(row, ("path", "sentence", "client_id"), str(path))
        sentences[row["path"]] = (row["sentence"], row["client_id"])
    return sentences
