"""NeMo manifests: one JSON object per utterance, with ``audio_filepath``, ``duration``, ``text`` and ``offset``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from ..sessions import Audio, Session, Utterance
from ..source import Source
from ._times import seconds, stamp

_READ = ("audio_filepath", "duration", "offset", "text", "lang", "speaker", "id", "gender")
_NEMO_ONLY = ("_skipme", "sampling_rate", "sample_rate", "shard_id", "orig_text", "language_spans")


def nemo_sessions(source: Source, path: Path, *, text: str = "text", language: str = "lang") -> Iterator[Session]:
    """Sessions of a manifest; neighbours with the same audio are one.

    Relative paths count from the manifest, as in NeMo. Ids are those of the rows or else made of file name and offset.

    Args:
        source: the corpus.
        path: the manifest.
        text: key of the transcript.
        language: key of the language.
    """

    def audio_of(item: tuple[str, dict[str, Any]]) -> Path:
        file = Path(str(item[1]["audio_filepath"]))
        return file if file.is_absolute() else path.parent / file

    for audio, rows in groupby(_rows(source, path), key=audio_of):
        utterances = []
        for place, row in rows:
            start = seconds(row.get("offset") or 0.0)
            duration = row.get("duration")
            stem = "-".join(audio.with_suffix("").parts[-2:])
            given = row.get("id")
            utterances.append(
                Utterance(
                    id=str(given) if given else f"{stem}-{stamp(start)}" if row.get("offset") else stem,
                    place=place,
                    text=" ".join(str(row.get(text) or "").split()),
                    raw=str(row.get("orig_text") or row.get(text) or ""),
                    start=start,
                    end=None if duration is None else start + seconds(duration),
                    speaker=str(row["speaker"]) if row.get("speaker") else None,
                    gender=row.get("gender"),
                    language=row.get(language),
                    spans=tuple((str(tag), int(a), int(b)) for tag, a, b in row.get("language_spans") or ()),
                    custom={
                        key: value for key, value in row.items() if key not in (*_READ, *_NEMO_ONLY, text, language)
                    },
                )
            )
        whole = len(utterances) == 1 and not utterances[0].start
        yield Session(
            utterances[0].id if whole else "-".join(audio.with_suffix("").parts[-2:]), Audio(audio), utterances
        )


def _rows(source: Source, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, row in source.json_lines(path):
        if row.get("_skipme"):
            continue
        if not row.get("audio_filepath"):
            source.problems.add("row", place, "no audio_filepath, so it is no row of a NeMo manifest")
            continue
        try:
            for key in ("offset", "duration"):
                seconds(row.get(key) or 0.0)
            [(str(tag), int(a), int(b)) for tag, a, b in row.get("language_spans") or ()]
        except (TypeError, ValueError):
            source.problems.add("row", place, "offset, duration or language_spans are not numbers")
            continue
        yield place, row
