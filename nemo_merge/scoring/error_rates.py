"""Word, character and mixed error rates over a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import TranscriptError
from .alignment import Costs, count_edits
from .tokens import Tokeniser, characters, mixed_tokens, words


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

    Texts are compared as they are; see :mod:`nemo_merge.scoring.text` for what to do about casing and punctuation.

    Example:
        >>> word_error_rate(["o gato preto"], ["o pato"]).rate
        0.6666666666666666

    Raises:
        ValueError: the lists differ in length or are empty.
    """
    return sum_counts(word_errors(references, hypotheses))


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Character errors of a corpus, spaces included (runs of them count as one).

    Raises:
        ValueError: the lists differ in length or are empty.
    """
    return sum_counts(utterance_errors(references, hypotheses, characters))


def mixed_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Errors of a corpus that mixes scripts: every Han character or kana is a token, as is every other word.

    This is what Mandarin-English papers call MER. It is not ``jiwer.mer``, the match error rate.

    Example:
        >>> mixed_error_rate(["我想 book 房间"], ["我想 look 房"]).rate
        0.4

    Raises:
        ValueError: the lists differ in length or are empty.
    """
    return sum_counts(utterance_errors(references, hypotheses, mixed_tokens))


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> list[ErrorCounts]:
    """Word errors of every utterance by itself."""
    return utterance_errors(references, hypotheses)


def utterance_errors(
    references: Sequence[str], hypotheses: Sequence[str], tokens: Tokeniser = words, costs: Costs = "levenshtein"
) -> list[ErrorCounts]:
    """Errors of every utterance by itself.

    Args:
        references: what was said.
        hypotheses: what was recognised, in the same order.
        tokens: what is counted.
        costs: of an edit, see :func:`~nemo_merge.scoring.alignment.align`.

    Raises:
        ValueError: the lists differ in length or are empty.
    """
    check_pairs(references, hypotheses)
    counts = []
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        said = tokens(reference)
        edits = count_edits(said, tokens(hypothesis), costs)
        counts.append(ErrorCounts(*edits, len(said), 1, int(any(edits))))
    return counts


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


def check_pairs(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    """Refuses what cannot be compared utterance by utterance.

    Raises:
        ValueError: one text instead of a list of them, lists of other lengths, or none.
    """
    if isinstance(references, str) or isinstance(hypotheses, str):
        raise TranscriptError("give lists of utterances, not one text: its letters would be taken for utterances")
    if len(references) != len(hypotheses) or not references:
        raise TranscriptError(
            f"{len(references)} references and {len(hypotheses)} hypotheses: give one hypothesis per reference"
        )
