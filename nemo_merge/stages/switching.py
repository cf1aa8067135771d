"""Languages of the words of a test set, and the errors at those where the language matters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..scoring.code_switching import NEUTRAL, Tag, code_mixing_index, script_tags, switch_point_fraction, switch_points
from ..scoring.error_rates import ErrorCounts
from ..scoring.points_of_interest import masked_errors, tagged_tokens
from ..scoring.tokens import mixed_tokens

EMBEDDED, MATRIX, ENTRY = "embedded", "matrix", "entry"
"""Words of interest: in another language than most, in the language of most, and the first after a switch."""


@dataclass(frozen=True)
class Switching:
    """Words of a test set and their languages.

    Attributes:
        tokens: of every reference, by the utterance's id; Han characters and kana one by one.
        languages: of these, None where it is not known.
    """

    tokens: Mapping[str, Sequence[str]]
    languages: Mapping[str, Sequence[Tag]]

    @cached_property
    def matrix(self) -> Tag:
        """The language of most words, or None if none is known."""
        counts = Counter(tag for tags in self.languages.values() for tag in tags if tag not in NEUTRAL)
        return min(counts, key=lambda tag: (-counts[tag], str(tag)), default=None)

    @cached_property
    def masks(self) -> Mapping[str, Mapping[str, Sequence[bool]]]:
        """Which words of every utterance are of each kind that there is; empty if all are in one language."""
        masks = {
            EMBEDDED: {key: [t not in (*NEUTRAL, self.matrix) for t in tags] for key, tags in self.languages.items()},
            MATRIX: {key: [tag == self.matrix for tag in tags] for key, tags in self.languages.items()},
            ENTRY: {key: entries(tags) for key, tags in self.languages.items()},
        }
        found = {kind: mask for kind, mask in masks.items() if any(map(any, mask.values()))}
        return found if EMBEDDED in found else {}

    def errors(self, heard: Mapping[str, str]) -> dict[str, list[ErrorCounts]]:
        """Errors at each kind of words, utterance by utterance; ``embedded`` is PIER.

        Args:
            heard: what was recognised, by the utterance's id; those that no model could decode are missing.
        """
        found = {key: (said, mixed_tokens(heard[key])) for key, said in self.tokens.items() if key in heard}
        return {
            kind: [masked_errors(*texts, mask[key]) for key, texts in found.items()]
            for kind, mask in self.masks.items()
        }

    def summary(self) -> dict[str, Any]:
        """How mixed the set is: code-mixing index, switch points, words by language."""
        tags = list(self.languages.values())
        words = Counter(tag for utterance in tags for tag in utterance if tag not in NEUTRAL)
        return {
            "matrix": self.matrix,
            "utterances": len(tags),
            "switched": sum(switch_points(utterance) > 0 for utterance in tags),
            "words": dict(words.most_common()),
            "code_mixing_index": code_mixing_index(tags),
            "switch_point_fraction": switch_point_fraction(tags),
        }


def read_switching(spoken: Iterable[Any], rewrite: Callable[[str], str] = str) -> Switching:
    """The words of a set and their languages.

    A word's language is that of the span around it (``language_spans`` in the supervision's ``custom``, with character
    offsets into the transcript), or that of the utterance if it is one. Where no utterance has spans, it is the word's
    script.

    Args:
        spoken: Lhotse supervisions with transcripts as they are in the corpus.
        rewrite: what transcripts are put through before they are compared.
    """
    found = list(spoken)
    tokens = {said.id: mixed_tokens(rewrite(said.text or "")) for said in found}
    if any((said.custom or {}).get("language_spans") for said in found):
        return Switching(tokens, {said.id: _by_span(said, tokens[said.id], rewrite) for said in found})
    return Switching(tokens, {key: script_tags(" ".join(words)) for key, words in tokens.items()})


def entries(tags: Sequence[Tag]) -> list[bool]:
    """Which words are the first in their language after words in another.

    Example:
        >>> entries(["pt", "en", "en", None, "pt"])
        [False, True, False, False, True]
    """
    found, before = [], None
    for tag in tags:
        known = tag not in NEUTRAL
        found.append(known and before is not None and tag != before)
        before = tag if known else before
    return found


def _by_span(said: Any, tokens: Sequence[str], rewrite: Callable[[str], str]) -> list[Tag]:
    """Languages of the words of an utterance."""
    spans = (said.custom or {}).get("language_spans") or ()
    if not spans:
        return [said.language if said.language and "-" not in said.language else None] * len(tokens)
    languages: list[Tag] = [None] * len(tokens)
    for tag in {tag for tag, _, _ in spans}:
        found, mask = tagged_tokens(_tagged(said.text, spans, tag), mixed_tokens, rewrite)
        if found == list(tokens):  # not so only where the tags changed what the text is rewritten to
            languages = [tag if inside else known for inside, known in zip(mask, languages, strict=True)]
    return languages


def _tagged(text: str, spans: Sequence[Sequence[Any]], language: Tag) -> str:
    """A text with ``<tag ...>`` around its parts in a language."""
    for tag, start, end in sorted(spans, key=lambda span: -span[1]):
        if tag == language:
            text = f"{text[:start]}<tag {text[start:end]}>{text[end:]}"
    return text
