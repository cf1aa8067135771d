"""Fisher Spanish: telephone conversations with English insertions (LDC2010S01 speech, LDC2010T04 transcripts).

Lhotse's ``fisher_spanish`` leaves the ``<foreign lang="English">`` tags in the text and makes no splits. Here tags
become language spans, those with typing errors too, and lists of recordings make splits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ...errors import CorpusError
from ..importers.tdf import tdf_sessions
from ..languages import spans_from_tags
from ..registry import Corpus, register
from ..sessions import Layout, Session, Span
from ..source import Source

_NOISE = re.compile(r"<\s*/?\s*(?:background|laugh|breath|cough|noise|sneeze|lipsmack)\s*/?\s*>|\(\(|\)\)|\[[^\]]*\]")
CORPUS = register(
    Corpus(
        name="fisher_es_en",
        title="Fisher Spanish, with its English",
        domain="telephone",
        languages=("es", "en"),
        variety="of the Americas, code-switched",
        licence="LDC user agreement",
        access="ldc",
        source="LDC2010S01 and LDC2010T04",
        layout="**/*.sph, **/*.tdf and **/*_call.tbl, in one folder",
        splits=("train", "dev", "test"),
        citation="LDC2010S01, LDC2010T04; splits: Post et al., IWSLT 2013",
        note="lists=<folder> with a file per split that names its recordings, one a line; without it there is one, "
        "all. switched=true keeps segments with English only.",
    )
)


@CORPUS.recipe
def prepare_fisher_es_en(source: Source, *, lists: str | None = None, switched: bool = False) -> Layout:
    """Telephone conversations, one recording of two channels each.

    Args:
        source: the corpus.
        lists: folder with a file per split whose lines begin with the name of a recording: ``train``, ``dev``,
            ``test``, or ``mapping`` of the Fisher and CALLHOME translations (``fisher_train`` and so on).
        switched: keep only segments with both languages, or English alone.
    """
    files = {path.stem: path for path in source.find("*.tdf")}
    if not files:
        return Layout({})
    audio = {path.stem: path for path in source.find("*.sph", "*.wav", "*.flac")}
    speakers = _speakers(source)

    def text_of(place: str, raw: str) -> tuple[str, tuple[Span, ...]]:
        return spans_from_tags(
            _NOISE.sub(" ", raw),
            "foreign",
            "es",
            {"english": "en"},
            lambda what: source.problems.add("tag", place, what),
        )

    def speaker_of(file: str, channel: int, name: str) -> str:
        return speakers.get((file.split("_")[2] if file.count("_") > 1 else file, channel)) or f"{file}-{channel}"

    def sessions(chosen: list[str]) -> Iterator[Session]:
        for session in tdf_sessions(
            source,
            [files[name] for name in chosen],
            lambda name: audio.get(name, files[name].with_suffix(".sph")),
            text_of,
            speaker_of,
        ):
            if switched:
                session.utterances = [u for u in session.utterances if any(tag != "es" for tag, _, _ in u.spans)]
            if session.utterances:
                yield session

    if lists is None:
        return Layout({"all": sessions(sorted(files))})
    return Layout({split: sessions(names) for split, names in _lists(source, Path(lists), files).items()})


def _speakers(source: Source) -> dict[tuple[str, int], str]:
    """Speaker ids by call and channel, from the table of calls."""
    speakers = {}
    for table in source.find("*_call.tbl"):
        for number, (place, line) in enumerate(source.lines(table)):
            cells = line.split(",")
            if number == 0 or not line.strip():
                continue
            if len(cells) < 9:
                source.problems.add("row", place, f"{len(cells)} cells; a row of the calls has at least 9")
                continue
            speakers[cells[0], 0], speakers[cells[0], 1] = cells[2], cells[8]
    return speakers


def _lists(source: Source, folder: Path, files: dict[str, Path]) -> dict[str, list[str]]:
    if not folder.is_dir():
        raise CorpusError(f"lists={folder}: no such folder")
    splits: dict[str, list[str]] = {}
    for path in source.find("*", under=folder):
        if path.stem.startswith("callhome"):
            continue
        names: list[str] = []
        for place, line in source.lines(path):
            name = Path(line.split()[0]).stem if line.strip() else ""
            if name in names[-1:]:
                continue
            if name in files:
                names.append(name)
            elif name:
                source.problems.add("row", place, f"{name!r} is not among the transcripts")
        splits[path.stem.removeprefix("fisher_")] = list(dict.fromkeys(names))
    return splits
