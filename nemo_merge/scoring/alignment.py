"""Aligns what was said with what was recognised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from ._libraries import library

Costs = Literal["levenshtein", "sclite"]
Pair = tuple[int | None, int | None]


def align(reference: Sequence[str], hypothesis: Sequence[str], costs: Costs = "levenshtein") -> list[Pair]:
    """The cheapest alignment of two sequences of tokens.

    Args:
        reference: tokens of what was said.
        hypothesis: tokens of what was recognised.
        costs: ``"levenshtein"`` counts every edit as one, which gives the smallest number of errors and is what jiwer,
            NeMo and Kaldi report. ``"sclite"`` weighs substitutions 4 and deletions and insertions 3, as the NIST
            Scoring Toolkit (SCTK) does: it aligns more naturally and may count a few errors more.

    Returns:
        Pairs of positions in the reference and in the hypothesis, in order; ``None`` in the first place is an
        insertion, in the second a deletion.
    """
    if costs == "sclite":
        return _align_as_sclite(reference, hypothesis)
    distance = library("rapidfuzz.distance", "scoring").Levenshtein
    pairs: list[Pair] = []
    for code in distance.opcodes(reference, hypothesis):
        said: Sequence[int | None] = range(code.src_start, code.src_end)
        heard: Sequence[int | None] = range(code.dest_start, code.dest_end)
        if code.tag == "delete":
            heard = [None] * len(said)
        elif code.tag == "insert":
            said = [None] * len(heard)
        pairs.extend(zip(said, heard, strict=True))
    return pairs


def count_edits(
    reference: Sequence[str], hypothesis: Sequence[str], costs: Costs = "levenshtein"
) -> tuple[int, int, int]:
    """Numbers of substitutions, deletions and insertions of the cheapest alignment; see :func:`align`."""
    if costs == "sclite":
        edits = library("kaldialign", "costs='sclite'").edit_distance(reference, hypothesis, sclite_mode=True)
        return edits["sub"], edits["del"], edits["ins"]
    distance = library("rapidfuzz.distance", "scoring").Levenshtein
    tags = Counter(edit.tag for edit in distance.editops(reference, hypothesis))
    return tags["replace"], tags["delete"], tags["insert"]


def error_slots(reference: Sequence[str], hypothesis: Sequence[str], costs: Costs = "levenshtein") -> list[int]:
    """Errors by place in the reference: 2 n + 1 counts for n reference tokens.

    Entry 2 i + 1 is 1 if token i was substituted or deleted; entry 2 i counts the insertions before token i, and the
    last entry those at the end.

    Example:
        >>> error_slots(["o", "gato"], ["o", "pato", "preto"])
        [0, 0, 0, 1, 1]
    """
    slots = [0] * (2 * len(reference) + 1)
    position = 0
    for said, heard in align(reference, hypothesis, costs):
        if said is None:
            slots[2 * position] += 1
            continue
        position = said + 1
        slots[2 * said + 1] = int(heard is None or reference[said] != hypothesis[heard])
    return slots


def _align_as_sclite(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Pair]:
    # The empty string stands for nothing: no tokeniser gives it.
    aligned = library("kaldialign", "costs='sclite'").align(reference, hypothesis, "", sclite_mode=True)
    pairs: list[Pair] = []
    said = heard = 0
    for left, right in aligned:
        pairs.append((said if left else None, heard if right else None))
        said += bool(left)
        heard += bool(right)
    return pairs
