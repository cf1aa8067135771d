"""SAM label files of SpeechDat: one small text file of ``KEY: value`` lines per recorded item.

``LBR`` gives the prompt and ``LBO`` the orthographic transcript after three numbers (begin, middle, end, in samples);
``SNB`` bytes and ``SAM`` samples per second, ``SEX``, ``AGE``, ``ACC`` and ``SCD`` describe the speaker. Audio is
headerless A-law at 8 kHz unless the label says otherwise. Marks in transcripts: ``[spk] [fil] [int] [sta]`` are
noises, ``**`` an unintelligible stretch, ``*`` before a mispronounced word, ``~`` at a truncated recording.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..sessions import Audio, Headerless, Session, Utterance, single
from ..source import Source

_MARKS = re.compile(r"\[[a-z]+\]|[*~]+", re.IGNORECASE)
_SUBTYPES = {"1": "ALAW", "2": "PCM_16"}


def sam_sessions(
    source: Source, files: list[Path], *, encoding: str | None = "latin-1", audio_suffixes: tuple[str, ...]
) -> Iterator[Session]:
    """One recording with one utterance for each label file.

    Args:
        source: the corpus.
        files: label files.
        encoding: of the label files.
        audio_suffixes: of audio beside a label file, in the order of preference, for example ``(".PTA", ".PTA.gz")``.
    """
    for path in files:
        label: dict[str, tuple[str, str]] = {}
        for place, line in source.lines(path, encoding):
            key, colon, value = line.partition(":")
            if colon and re.fullmatch(r"[A-Z0-9]{2,4}", key.strip()):
                label.setdefault(key.strip(), (place, value.strip()))
        if "LBO" not in label:
            source.problems.add("missing_text", str(path), "no LBO line: the label file has no transcript")
            continue
        place, transcript = label["LBO"]
        raw = transcript.split(",", 3)[-1] if re.match(r"\s*\d*\s*,", transcript) else transcript
        raw = " ".join(raw.split())
        values = {key: value for key, (_, value) in label.items()}
        speaker = values.get("SCD") or values.get("SES")
        candidates = [path.with_name(path.stem + suffix) for suffix in audio_suffixes]
        audio = next((item for item in candidates if item.is_file()), candidates[0])
        try:
            headerless = Headerless(int(values.get("SAM", 8000)), 1, _SUBTYPES.get(values.get("SNB", "1"), "ALAW"))
        except ValueError:
            source.problems.add("row", label["SAM"][0], f"SAM: {values['SAM']!r} is not a sampling rate")
            continue
        yield single(
            Audio(audio, headerless=None if audio.suffix.lower() in (".wav", ".flac") else headerless),
            Utterance(
                id=path.stem,
                place=place,
                text=" ".join(_MARKS.sub(" ", raw).split()),
                raw=raw,
                speaker=speaker,
                gender={"M": "Male", "F": "Female"}.get(values.get("SEX", "").upper()),
                custom={
                    name: values[key]
                    for key, name in (("AGE", "age"), ("ACC", "accent"), ("CCD", "item"), ("REG", "region"))
                    if values.get(key)
                },
            ),
        )
