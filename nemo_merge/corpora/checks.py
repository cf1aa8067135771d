"""Which utterances of a session can be used, and what is wrong with the others."""

from __future__ import annotations

import math
from collections.abc import Iterable

from .problems import Problem
from .sessions import Utterance

TOLERANCE = 0.1
"""Seconds by which a segment may run over the end of its audio, and is then cut; transcripts round their times."""
_OVERLAP = 0.02  # seconds


def usable(
    utterances: Iterable[Utterance], duration: float, channels: Iterable[int]
) -> tuple[list[Utterance], list[Problem]]:
    """Utterances that have words and lie in their audio, with their ends filled in, and the problems of the others.

    Args:
        utterances: of one recording.
        duration: of the recording, seconds.
        channels: of the recording.
    """
    kept: list[Utterance] = []
    problems: list[Problem] = []
    last: dict[tuple[str | None, int], Utterance] = {}
    there = set(channels)
    for utterance in sorted(utterances, key=lambda item: (item.start, item.id)):
        problem = _wrong(utterance, duration, there)
        if problem is None:
            before = last.get((utterance.speaker, utterance.channel))
            if before and before.end is not None and before.end - utterance.start > _OVERLAP:
                problem = (
                    "overlap",
                    f"{utterance.id} starts at {utterance.start:g} s, before {before.id} of the same speaker ends "
                    f"({before.end:g} s)",
                )
        if problem:
            problems.append(Problem(problem[0], utterance.place, problem[1]))
            continue
        kept.append(utterance)
        last[utterance.speaker, utterance.channel] = utterance
    return kept, problems


def _wrong(utterance: Utterance, duration: float, channels: set[int]) -> tuple[str, str] | None:
    if not any(character.isalnum() for character in utterance.text):
        shown = utterance.raw if utterance.raw is not None else utterance.text
        return "empty_text", f"{utterance.id} has no words ({shown!r})"
    end = duration if utterance.end is None else utterance.end
    if not (math.isfinite(utterance.start) and math.isfinite(end) and 0 <= utterance.start < end):
        return "bounds", f"{utterance.id} runs from {utterance.start:g} to {end:g} s"
    if end > duration + TOLERANCE or utterance.start >= duration:
        return "bounds", f"{utterance.id} ends at {end:g} s, but its audio is {duration:g} s long"
    if utterance.channel not in channels:
        return "bounds", f"{utterance.id} is on channel {utterance.channel}, the audio has {sorted(channels)}"
    utterance.end = min(end, duration)
    return None
