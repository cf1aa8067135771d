"""How mixed speech is: code-mixing index and switch points."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from .tokens import mixed_tokens, script

Tag = str | None

NEUTRAL: frozenset[Tag] = frozenset({None, "", "und", "zxx", "univ", "other"})
"""Tags of tokens that belong to no language: numbers, names, noises."""


def code_mixing_index(
    language_tags: Sequence[Tag] | Sequence[Sequence[Tag]], *, neutral: frozenset[Tag] = NEUTRAL
) -> float:
    """Code-mixing index (CMI) of an utterance or of a corpus (Das and Gambäck, 2014, ICON), from 0 to 100.

    For an utterance, 100 (1 - w / (n - u)) with n tokens, u of them neutral, and w those of the most frequent language;
    0 if all tokens are neutral. For a corpus, the mean over its utterances, those in one language included.

    Args:
        language_tags: the language of every token; or a list of these, one per utterance.
        neutral: tags that name no language.

    Example:
        >>> code_mixing_index(["de", "de", "en", "univ", "de"])
        25.0
        >>> code_mixing_index([["de", "en"], ["de", "de"]])
        25.0

    Raises:
        ValueError: a corpus without utterances.
    """
    if any(not isinstance(tag, str | None) for tag in language_tags):
        return sum(code_mixing_index(tags, neutral=neutral) for tags in language_tags) / len(language_tags)  # type: ignore[arg-type, misc]
    counts = Counter(tag for tag in language_tags if tag not in neutral)
    total = counts.total()
    return 100 * (total - max(counts.values())) / total if total else 0.0


def switch_points(language_tags: Sequence[Tag], *, neutral: frozenset[Tag] = NEUTRAL) -> int:
    """How often the language changes within an utterance; neutral tokens are passed over.

    Example:
        >>> switch_points(["de", "en", None, "en", "de"])
        2
    """
    languages = [tag for tag in language_tags if tag not in neutral]
    return sum(before != after for before, after in pairwise(languages))


def switch_point_fraction(language_tags: Sequence[Sequence[Tag]], *, neutral: frozenset[Tag] = NEUTRAL) -> float:
    """Switch points of all utterances over their tokens, neutral ones included; 0 without tokens."""
    tokens = sum(len(tags) for tags in language_tags)
    return sum(switch_points(tags, neutral=neutral) for tags in language_tags) / tokens if tokens else 0.0


def script_tags(text: str) -> list[Tag]:
    """The script of every token of a text, for language pairs that are written in different ones.

    Example:
        >>> script_tags("我 book 42")
        ['Han', 'Latin', None]
    """
    return [script(token) for token in mixed_tokens(text)]
