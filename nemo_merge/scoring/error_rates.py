"""Word and character error rates over a corpus, counted by jiwer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorCounts:
    """Errors summed over utterances.

    Attributes:
        substitutions, deletions, insertions: numbers of edits.
        reference_length: number of words (or characters) in the references.
        utterances: number of utterances.
        wrong_utterances: number of utterances with an error.
    """

    substitutions: int
    deletions: int
    insertions: int
    reference_length: int
    utterances: int = 0
    wrong_utterances: int = 0

    @property
    def errors(self) -> int:
        """All edits."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def correct(self) -> int:
        """Reference words that were recognised."""
        return self.reference_length - self.substitutions - self.deletions

    @property
    def rate(self) -> float:
        """Errors per reference word, a fraction; may exceed 1.

        Raises:
            ValueError: the references are empty, so that there is no rate.
        """
        if self.reference_length == 0:
            raise ValueError("the references have no words, so there is no error rate")
        return self.errors / self.reference_length


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Word errors of a corpus: edits summed over utterances, words split at white space.

    Example:
        >>> word_error_rate(["o gato preto"], ["o pato"]).rate
        0.6666666666666666

    Raises:
        ValueError: the lists differ in length or are empty.
    """
    return sum_counts(word_errors(references, hypotheses))


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Character errors of a corpus, spaces included.

    Raises:
        ValueError: the lists differ in length or are empty.
    """
    import jiwer

    _check(references, hypotheses)
    output = [jiwer.process_characters([r], [h]) for r, h in zip(references, hypotheses, strict=True)]
    return sum_counts([_counts(item) for item in output])


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> list[ErrorCounts]:
    """Word errors of every utterance by itself."""
    import jiwer

    _check(references, hypotheses)
    return [_counts(jiwer.process_words([r], [h])) for r, h in zip(references, hypotheses, strict=True)]


def sum_counts(counts: Sequence[ErrorCounts]) -> ErrorCounts:
    """Errors of several utterances or corpora together."""
    return ErrorCounts(
        sum(item.substitutions for item in counts),
        sum(item.deletions for item in counts),
        sum(item.insertions for item in counts),
        sum(item.reference_length for item in counts),
        sum(item.utterances for item in counts),
        sum(item.wrong_utterances for item in counts),
    )


def _counts(output: object) -> ErrorCounts:
    substitutions, deletions = output.substitutions, output.deletions  # type: ignore[attr-defined]
    insertions, hits = output.insertions, output.hits  # type: ignore[attr-defined]
    wrong = int(substitutions + deletions + insertions > 0)
    return ErrorCounts(substitutions, deletions, insertions, hits + substitutions + deletions, 1, wrong)


def _check(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    if len(references) != len(hypotheses) or not references:
        raise ValueError(
            f"{len(references)} references and {len(hypotheses)} hypotheses: give one hypothesis per reference"
        )
