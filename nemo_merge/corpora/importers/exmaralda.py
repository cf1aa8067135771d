"""EXMARaLDA basic transcriptions (``.exb``): tiers of events between points of a common time line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree.ElementTree import Element

from ..sessions import Audio, Session, Utterance
from ..source import Source
from ._times import seconds, stamp
from ._xml import line_of, parse_xml

_NOISE = re.compile(r"\(\(.*?\)\)|\{.*?\}|[/•…]+")


def exb_sessions(
    source: Source, files: list[Path], audio_dir: Path | None = None, *, encoding: str | None = None
) -> Iterator[Session]:
    """Sessions of transcripts, one per file; events of tiers of type ``t`` (transcription) are the utterances.

    Args:
        source: the corpus.
        files: transcripts.
        audio_dir: folder of the audio that the transcripts name; their own when None.
        encoding: overrides the encoding that the files declare.
    """
    for path in files:
        root = parse_xml(source, path, encoding)
        if root is None:
            continue
        if root.tag != "basic-transcription":
            source.problems.add(
                "row", f"{path}, line {line_of(root)}", f"<{root.tag}> is not EXMARaLDA's <basic-transcription>"
            )
            continue
        times = {item.get("id", ""): item.get("time") for item in root.iter("tli")}
        speakers = {node.get("id", ""): node for node in root.iter("speaker")}
        utterances = [
            utterance
            for tier in root.iter("tier")
            if tier.get("type") == "t"
            for utterance in _utterances(source, path, tier, times, speakers)
        ]
        reference = root.find(".//referenced-file")
        name = Path(((reference.get("url") if reference is not None else "") or "").replace("\\", "/")).name
        folder = audio_dir or path.parent
        if utterances:
            yield Session(path.stem, Audio(folder / (name or f"{path.stem}.wav")), utterances)


def _utterances(
    source: Source, path: Path, tier: Element, times: Mapping[str, str | None], speakers: Mapping[str, Element]
) -> Iterator[Utterance]:
    speaker = tier.get("speaker") or None
    known = speakers.get(speaker or "")
    sex = known.find("sex") if known is not None else None
    for event in tier.iter("event"):
        place = f"{path}, line {line_of(event)}"
        raw = " ".join("".join(event.itertext()).split())
        try:
            start, end = (seconds(times[event.get(key, "")] or "") for key in ("start", "end"))
        except (KeyError, ValueError):
            source.problems.add(
                "row", place, f"{event.get('start')} to {event.get('end')} has no time on the time line"
            )
            continue
        yield Utterance(
            id=f"{path.stem}-{tier.get('id', '')}-{stamp(start)}",
            place=place,
            text=" ".join(_NOISE.sub(" ", raw).split()),
            raw=raw,
            start=start,
            end=end,
            speaker=f"{path.stem}-{speaker}" if speaker else None,
            gender={"m": "Male", "f": "Female"}.get(sex.get("value", "")) if sex is not None else None,
        )
