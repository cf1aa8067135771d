"""PIER: errors on the words that matter, such as those in the embedded language."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from .alignment import Costs, align
from .error_rates import ErrorCounts, check_pairs, sum_counts
from .tokens import Tokeniser, mixed_tokens, script

Insertions = Literal["next", "none"]

_TAG = re.compile(r"<tag\s+([^<>]*?)\s*>")
# Private-use characters: no text profile removes them, changes them or joins words at them.
_OPEN, _CLOSE = "\ue000", "\ue001"


def has_tags(text: str) -> bool:
    """Whether some words are tagged: ``<tag word>``."""
    return _TAG.search(text) is not None


def without_tags(text: str) -> str:
    """The text with its tags removed and its words kept.

    Example:
        >>> without_tags("hast du das <tag File> <tag gedownloadet>?")
        'hast du das File gedownloadet?'
    """
    return _TAG.sub(r"\1", text)


def tagged_tokens(
    text: str, tokens: Tokeniser = mixed_tokens, normalise: Callable[[str], str] = str
) -> tuple[list[str], list[bool]]:
    """Tokens of a tagged text, and which of them are of interest.

    Args:
        text: with tags around words, ``<tag word>`` or ``<tag several words>``.
        tokens: what is counted.
        normalise: applied to the text before it is cut; what a tagged word becomes stays tagged.

    Example:
        >>> tagged_tokens("das <tag E-Mail>?", normalise=lambda text: text.replace("-", " ").replace("?", ""))
        (['das', 'E', 'Mail'], [False, True, True])
    """
    marked = normalise(_TAG.sub(rf"{_OPEN}\1{_CLOSE}", text))
    plain: list[str] = []
    tagged: list[bool] = []
    inside = False
    for character in marked:
        if character in (_OPEN, _CLOSE):
            inside = character == _OPEN
        else:
            plain.append(character)
            tagged.append(inside)
    joined = "".join(plain)
    found = tokens(joined)
    mask, end = [], 0
    for token in found:
        start = joined.index(token, end)
        end = start + len(token)
        mask.append(any(tagged[start:end]))
    return found, mask


def other_scripts(references: Sequence[Sequence[str]]) -> list[list[bool]]:
    """Which tokens are not in the script that most tokens of the corpus are in; those without letters never are.

    Example:
        >>> other_scripts([["我", "们", "book", "42"], ["好"]])
        [[False, False, True, False], [False]]
    """
    scripts = [[script(token) for token in tokens] for tokens in references]
    counts = Counter(name for names in scripts for name in names if name)
    matrix = min(counts, key=lambda name: (-counts[name], name), default=None)
    return [[name is not None and name != matrix for name in names] for names in scripts]


def masked_errors(
    reference: Sequence[str],
    hypothesis: Sequence[str],
    mask: Sequence[bool],
    *,
    insertions: Insertions = "next",
    costs: Costs = "levenshtein",
) -> ErrorCounts:
    """Errors at some tokens of a reference, after one alignment of the whole of it.

    Args:
        reference: tokens of what was said.
        hypothesis: tokens of what was recognised.
        mask: which reference tokens count.
        insertions: ``"next"`` lets an insertion belong to the reference token that follows it (at the end, to the last
            one), as the code published with PIER does; ``"none"`` leaves insertions out.
        costs: of the alignment.

    Returns:
        Counts whose ``reference_length`` is the number of tokens that count.
    """
    substitutions = deletions = inserted = position = 0
    for said, heard in align(reference, hypothesis, costs):
        if said is None:
            if reference and insertions == "next":
                inserted += mask[min(position, len(reference) - 1)]
            continue
        position = said + 1
        if mask[said] and heard is None:
            deletions += 1
        elif mask[said] and heard is not None:
            substitutions += reference[said] != hypothesis[heard]
    wrong = int(substitutions + deletions + inserted > 0)
    return ErrorCounts(substitutions, deletions, inserted, sum(mask), int(any(mask)), wrong)


def pier(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    tokens: Tokeniser = mixed_tokens,
    insertions: Insertions = "next",
) -> ErrorCounts:
    """Point-of-interest error rate (PIER; Ugan et al., 2025, ICASSP, arXiv 2501.09512).

    Each utterance is aligned as a whole; only edits at words of interest are counted, over the number of such words.

    Args:
        references: with words of interest tagged, ``hast du das <tag File>``. If no reference has a tag, words of
            interest are those in another script than most tokens of all references, such as English words in Mandarin.
        hypotheses: without tags.
        tokens: what is counted; Han characters one by one by default.
        insertions: to which reference word an insertion belongs, see :func:`masked_errors`.

    Example:
        >>> pier(["hast du das <tag File> <tag gedownloadet>"], ["hast du die File geladen"]).rate
        0.5

    Returns:
        Counts over words of interest; there is no ``rate`` if there are none.

    Raises:
        ValueError: the lists differ in length or are empty.
    """
    check_pairs(references, hypotheses)
    cut = [tagged_tokens(reference, tokens) for reference in references]
    masks = [mask for _, mask in cut]
    if not any(map(any, masks)):
        masks = other_scripts([found for found, _ in cut])
    return sum_counts(
        [
            masked_errors(found, tokens(hypothesis), mask, insertions=insertions)
            for (found, _), mask, hypothesis in zip(cut, masks, hypotheses, strict=True)
        ]
    )
