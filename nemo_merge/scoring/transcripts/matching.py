"""Puts references and hypotheses of several systems side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from ...errors import TranscriptError
from .problems import Problems
from .utterance import Utterance

Missing = Literal["delete", "skip"]


@dataclass(frozen=True)
class Row:
    """A reference with what every system recognised.

    Attributes:
        id: of the utterance.
        where: file and line of the reference.
        set: the test set.
        text: what was said, as the file has it.
        heard: what was recognised, by system.
        language, domain, speaker: if known.
    """

    id: str
    where: tuple[Path, int]
    set: str
    text: str
    heard: Mapping[str, str]
    language: str | None = None
    domain: str | None = None
    speaker: str | None = None


def match(
    set_name: str,
    reference: tuple[Path, Mapping[str, Utterance]],
    hypotheses: Mapping[str, tuple[Path, Mapping[str, Utterance]]],
    problems: Problems,
    *,
    missing: Missing = "delete",
    keep_empty: bool = False,
) -> list[Row]:
    """Rows of one test set in the order of the references; every system is scored on the same rows.

    Args:
        set_name: for the rows.
        reference: the file and its utterances by id.
        hypotheses: the same by system.
        problems: where what does not fit is noted.
        missing: a reference without a hypothesis counts as deleted (``"delete"``) for the system that lacks it, or is
            left out for all (``"skip"``).
        keep_empty: score empty references, in which all that is recognised is inserted.

    Raises:
        TranscriptError: a system shares no utterance with the references.
    """
    path, said = reference
    heard = {system: _heard(said, found, file, path, problems) for system, (file, found) in hypotheses.items()}
    rows = []
    for utterance in said.values():
        if utterance.text is None:
            problems.add("no reference", path, utterance.line, f"{utterance.id} has no reference")
            continue
        if not utterance.text.strip():
            problems.add("empty reference", path, utterance.line, f"the reference of {utterance.id} is empty")
            if not keep_empty:
                continue
        without = [system for system, texts in heard.items() if utterance.id not in texts]
        for system in without:
            message = f"{utterance.id} has no hypothesis in {hypotheses[system][0]}"
            problems.add("missing hypothesis", path, utterance.line, message)
        if without and missing == "skip":
            continue
        texts = {system: found.get(utterance.id, "") for system, found in heard.items()}
        about = (utterance.language, utterance.domain, utterance.speaker)
        rows.append(Row(utterance.id, (path, utterance.line), set_name, utterance.text, texts, *about))
    return rows


def _heard(
    said: Mapping[str, Utterance], found: Mapping[str, Utterance], file: Path, path: Path, problems: Problems
) -> dict[str, str]:
    """What a system recognised, by the id of the reference."""
    names = _same_names(said, found)
    # A file that has both fields (text and pred_text) says in the second what was recognised.
    both = any(utterance.heard is not None for utterance in found.values())
    texts: dict[str, str] = {}
    shared = False
    for utterance in found.values():
        name = names.get(utterance.id, utterance.id)
        if name not in said:
            problems.add("unknown utterance", file, utterance.line, f"{utterance.id} is not in {path}")
            continue
        shared = True
        text = utterance.heard if both else utterance.text
        if text is not None:
            texts[name] = text
    if not shared:
        ids = f"{next(iter(found))!r} there and {next(iter(said))!r} here"
        raise TranscriptError(f"{file}: has no utterance of {path}; the first ids are {ids}")
    return texts


def _same_names(said: Mapping[str, Utterance], found: Mapping[str, Utterance]) -> dict[str, str]:
    """Ids of references by ids of hypotheses, where the former are paths and the latter name the same audio otherwise.

    Manifests name audio by path, often in another folder, and Kaldi and CTM files by the name of the file alone: as
    many of the last parts of the path are compared as tell the references apart.
    """
    if set(said) & set(found) or not all(utterance.from_path for utterance in said.values()):
        return {}
    for depth in range(1, max(len(PurePath(name).parts) for name in said) + 1):
        by_end = {_end(name, depth): name for name in said}
        if len(by_end) == len(said):
            return {name: by_end[_end(name, depth)] for name in found if _end(name, depth) in by_end}
    return {}


def _end(name: str, depth: int) -> str:
    path, at, offset = name.partition("@")
    pure = PurePath(path)
    stem = pure.stem if pure.suffix.lower() in _AUDIO else pure.name
    parts: Sequence[str] = (*pure.parts[:-1], stem)
    return "/".join(parts[-depth:]) + at + offset


_AUDIO = frozenset({".wav", ".flac", ".mp3", ".opus", ".ogg", ".m4a", ".sph"})
