"""MAPSSWE: whether two recognisers differ on the same speech."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .alignment import Costs, error_slots
from .error_rates import check_pairs
from .tokens import Tokeniser, words


@dataclass(frozen=True)
class MapssweResult:
    """Outcome of a matched-pairs test.

    Attributes:
        segments: pieces of speech in which either system erred. With fewer than about 50 the normal approximation is
            rough.
        mean_difference: mean over the segments of the errors of A minus those of B; positive if B is better.
        z: mean difference in standard errors; 0 if all segments have the same difference, as in SCTK: their spread, and
            with it the standard error, is not known then.
        p_value: two-tailed, of the hypothesis that both err alike.
        errors_a, errors_b: errors in all segments, which is all errors of each system.
    """

    segments: int
    mean_difference: float
    z: float
    p_value: float
    errors_a: int
    errors_b: int


def mapsswe(
    references: Sequence[str],
    hypotheses_a: Sequence[str],
    hypotheses_b: Sequence[str],
    *,
    tokens: Tokeniser = words,
    boundary: int = 2,
    costs: Costs = "sclite",
) -> MapssweResult:
    """Matched-pairs sentence-segment word error test of two systems on the same utterances.

    Gillick and Cox (1989, ICASSP), as ``sc_stats -t mapsswe`` of the NIST Scoring Toolkit computes it. An utterance is
    cut into segments, each a longest stretch around errors of either system that is bounded by ``boundary`` words which
    both recognised, or by an end of the utterance; errors in different segments are then taken to be independent.

    Args:
        references: what was said.
        hypotheses_a: what system A recognised, in the same order.
        hypotheses_b: what system B recognised.
        tokens: what counts as a word.
        boundary: correct words in a row that separate segments; SCTK's default is 2.
        costs: of the alignment; SCTK's own by default, so that the counts are those that it reports.

    Raises:
        ValueError: the lists differ in length or are empty.
    """
    check_pairs(references, hypotheses_a)
    check_pairs(references, hypotheses_b)
    a = [error_slots(tokens(r), tokens(h), costs) for r, h in zip(references, hypotheses_a, strict=True)]
    b = [error_slots(tokens(r), tokens(h), costs) for r, h in zip(references, hypotheses_b, strict=True)]
    return compare_slots(a, b, boundary)


def compare_slots(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]], boundary: int = 2) -> MapssweResult:
    """The test on errors by place, as :func:`~nemo_merge.scoring.alignment.error_slots` gives them by utterance."""
    segments: list[tuple[int, int]] = []
    for slots_a, slots_b in zip(a, b, strict=True):
        segments.extend(_segments(slots_a, slots_b, boundary))
    differences = [left - right for left, right in segments]
    count = len(differences)
    errors_a, errors_b = sum(left for left, _ in segments), sum(right for _, right in segments)
    mean = sum(differences) / count if count else 0.0
    if len(set(differences)) < 2:
        return MapssweResult(count, mean, 0.0, 1.0, errors_a, errors_b)
    variance = sum((difference - mean) ** 2 for difference in differences) / (count - 1)
    z = mean / math.sqrt(variance / count)
    return MapssweResult(count, mean, z, math.erfc(abs(z) / math.sqrt(2)), errors_a, errors_b)


def _segments(slots_a: Sequence[int], slots_b: Sequence[int], boundary: int) -> list[tuple[int, int]]:
    segments: list[tuple[int, int]] = []
    correct = boundary  # words in a row that both recognised; the start of an utterance separates as well
    for place, (left, right) in enumerate(zip(slots_a, slots_b, strict=True)):
        if left or right:
            if correct < boundary:
                before = segments.pop()
                segments.append((before[0] + left, before[1] + right))
            else:
                segments.append((left, right))
            correct = 0
        elif place % 2:  # a word of the reference, not a gap between words
            correct += 1
    return segments
