"""Common Voice: sentences read by volunteers (Ardila et al., LREC 2020, arXiv 1912.06670).

Lhotse's recipe is not wrapped but written anew: it starts a pool of spawned processes even for one job, so that a
script without a main guard fails; it needs the columns ``accents`` and ``variant``, which older releases lack; and
its cache looks for files under other names than it writes. A test shows each, and that both give the same utterances.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path

from ...errors import ConfigError, did_you_mean
from ..registry import Corpus, register
from ..sessions import Audio, Layout, Session, Utterance, single
from ..source import Source, require

SPLITS = ("train", "dev", "test", "validated", "invalidated", "other")
VARIETIES = {
    "pt-PT": ("portugal", "portugues europeu", "european", "pt-pt", "lisbo", "europeia"),
    "pt-BR": ("brasil", "brazil", "pt-br", "paulista", "carioca", "mineiro", "nordestin", "gaucho"),
}
"""Words of the columns ``variant`` and ``accents``, without marks, that tell a variety. Accents are free text."""

CORPUS = register(
    Corpus(
        name="common_voice",
        title="Mozilla Common Voice",
        domain="read_crowd",
        languages=("pt",),
        variety="all; variety=pt-PT keeps those who say that they speak European Portuguese",
        licence="CC0 1.0",
        access="open",
        source="commonvoice.mozilla.org (after an e-mail address)",
        layout="the unpacked release: <language>/{train,dev,test,...}.tsv and <language>/clips/",
        splits=("train", "dev", "test"),
        citation="Ardila et al., LREC 2020, arXiv 1912.06670",
        note="Few speakers of Portuguese say where they are from: the European part is some hours.",
    )
)


@CORPUS.recipe
def prepare_common_voice(
    source: Source,
    *,
    language: str = "pt",
    variety: str | None = None,
    splits: tuple[str, ...] = ("train", "dev", "test"),
) -> Layout:
    """Read sentences of one language.

    Args:
        source: the corpus.
        language: as Common Voice names it: ``pt``, ``en``, ``zh-CN``.
        variety: ``pt-PT`` or ``pt-BR``: keep only speakers who say that theirs it is.
        splits: names of its tables.
    """
    if variety is not None and variety not in VARIETIES:
        raise ConfigError(f"common_voice: variety={variety!r} is unknown{did_you_mean(variety, VARIETIES)}")
    for split in splits:
        if split not in SPLITS:
            raise ConfigError(f"common_voice has no split {split!r}{did_you_mean(split, SPLITS)}")
    root = source.root if (source.root / "clips").is_dir() else source.folder(language)
    tables = {split: root / f"{split}.tsv" for split in splits if (root / f"{split}.tsv").is_file()}
    return Layout(
        {split: _sessions(source, path, variety) for split, path in tables.items()},
        stem=f"common-voice-{(variety or language).lower()}",
        languages=(variety or language,),
    )


def _sessions(source: Source, table: Path, variety: str | None) -> Iterator[Session]:
    for number, (place, row) in enumerate(source.rows(table)):
        if number == 0:
            require(row, ("path", "sentence", "client_id"), str(table))
            if variety and not {"accents", "accent", "variant"} & row.keys():
                raise ConfigError(f"{table}: has no column accents or variant, so variety={variety} cannot be told")
        accent = row.get("accents") or row.get("accent") or ""
        found = variety_of(row.get("variant") or "") or variety_of(accent)
        if variety and found != variety:
            continue
        name = row["path"] if row["path"].endswith((".mp3", ".wav", ".flac")) else f"{row['path']}.mp3"
        yield single(
            Audio(table.parent / "clips" / name),
            Utterance(
                id=Path(name).stem,
                place=place,
                text=" ".join(row["sentence"].split()),
                raw=row["sentence"],
                speaker=row["client_id"],
                gender=_gender(row.get("gender", "")),
                language=found,
                custom={
                    key: value
                    for key, value in (("age", row.get("age")), ("accents", accent), ("variant", row.get("variant")))
                    if value
                },
            ),
        )


def variety_of(description: str) -> str | None:
    """Which variety of Portuguese a description names; None if neither or both.

    Example:
        >>> variety_of("Português de Portugal (Lisboa)"), variety_of("Paulistano"), variety_of("")
        ('pt-PT', 'pt-BR', None)
    """
    plain = "".join(c for c in unicodedata.normalize("NFD", description.lower()) if not unicodedata.combining(c))
    found = [tag for tag, words in VARIETIES.items() if any(word in plain for word in words)]
    return found[0] if len(found) == 1 else None


def _gender(value: str) -> str | None:
    first = value.split("_", 1)[0]
    return {"male": "Male", "female": "Female"}.get(first)
