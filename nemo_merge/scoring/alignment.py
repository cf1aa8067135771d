"""Aligns what was said with what was recognised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ._libraries import library

Costs = Literal["levenshtein", "sclite"]
Pair = tuple[int | None, int | None]


def align(reference: Sequence[str], hypothesis: Sequence[str], costs: Costs = "levenshtein") -> list[Pair]:
    """The cheapest alignment of two sequences of tokens.

    Args:
        reference: tokens of what was said.
        hypothesis: tokens of what was recognised.
        costs: ``"levenshtein"`` counts every edit as one, which gives the smallest number of errors and is what jiwer,
            NeMo and Kaldi report. ``"sclite"`` weighs substitutions 4 and deletions and insertions 3 and gives the
            alignment of the NIST Scoring Toolkit (SCTK), which may have a few errors more.

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
        pairs = _align_as_sclite(reference, hypothesis)
        deletions = sum(heard is None for _, heard in pairs)
        insertions = sum(said is None for said, _ in pairs)
        substitutions = sum(
            said is not None and heard is not None and reference[said] != hypothesis[heard] for said, heard in pairs
        )
        return substitutions, deletions, insertions
    distance = library("rapidfuzz.distance", "scoring").Levenshtein
    tags = Counter(edit.tag for edit in distance.editops(reference, hypothesis))
    return tags["replace"], tags["delete"], tags["insert"]


def error_slots(reference: Sequence[str], hypothesis: Sequence[str], costs: Costs = "levenshtein") -> list[int]:
    """Errors by place in the reference: 2 n + 1 counts for n reference tokens.

    Entry 2 i + 1 is 1 if token i was substituted or deleted; entry 2 i counts the insertions before token i, and the
    last entry those at the end.

    Example:
        >>> error_slots(["o", "gato"], ["o", "gato", "preto"])
        [0, 0, 0, 0, 1]
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
    """Costs and ties as in sclite: from the end, a match or substitution before an insertion before a deletion.

    kaldialign has the same costs, but other ties, which gives MAPSSWE other segments than SCTK finds.
    """
    end = 0  # equal tokens at the end are matched in any case
    while end < min(len(reference), len(hypothesis)) and reference[-1 - end] == hypothesis[-1 - end]:
        end += 1
    said, heard = len(reference) - end, len(hypothesis) - end
    pairs: list[Pair] = [(said + index, heard + index) for index in reversed(range(end))]
    steps = _sclite_steps(reference[:said], hypothesis[:heard])
    while said or heard:
        step = steps[said, heard]
        said -= step != _INSERTION
        heard -= step != _DELETION
        pairs.append((None if step == _INSERTION else said, None if step == _DELETION else heard))
    return pairs[::-1]


_MATCH, _INSERTION, _DELETION = range(3)
_SUBSTITUTION_COST, _GAP_COST = 4, 3


def _sclite_steps(reference: Sequence[str], hypothesis: Sequence[str]) -> np.ndarray:
    """The last step of the best alignment of every beginning of the reference with every one of the hypothesis."""
    numbers: dict[str, int] = {}
    said, heard = (
        np.array([numbers.setdefault(token, len(numbers)) for token in tokens], dtype=np.int64)
        for tokens in (reference, hypothesis)
    )
    insertions = _GAP_COST * np.arange(len(heard) + 1)
    steps = np.empty((len(said) + 1, len(heard) + 1), dtype=np.uint8)
    steps[0] = _INSERTION
    costs = insertions
    for row, token in enumerate(said, start=1):
        matched = costs[:-1] + np.where(heard == token, 0, _SUBSTITUTION_COST)
        without = costs + _GAP_COST
        without[1:] = np.minimum(without[1:], matched)
        # Any number of insertions may follow: the best over all places before, as if none had cost anything.
        costs = np.minimum.accumulate(without - insertions) + insertions
        steps[row, 0] = _DELETION
        inserted = costs[1:] == costs[:-1] + _GAP_COST
        steps[row, 1:] = np.where(costs[1:] == matched, _MATCH, np.where(inserted, _INSERTION, _DELETION))
    return steps
