"""BLEU and chrF for speech translation, by sacrebleu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ._libraries import library
from .error_rates import check_pairs


class TranslationScore(NamedTuple):
    """A corpus score, 0 to 100, higher is better, with the signature that makes it comparable (Post, 2018, WMT)."""

    score: float
    signature: str


def bleu(
    references: Sequence[str], hypotheses: Sequence[str], *, tokenize: str | None = None, lowercase: bool = False
) -> TranslationScore:
    """Corpus BLEU. Give detokenised, cased text: sacrebleu tokenises.

    Args:
        references: translations by people, one per utterance.
        hypotheses: those of the system, in the same order.
        tokenize: sacrebleu's tokeniser; its default is ``13a``. Use ``zh``, ``ja-mecab``, ``ko-mecab`` or ``char``
            where words are not separated by spaces.
        lowercase: ignore case.

    Raises:
        ConfigError: sacrebleu is not installed.
        ValueError: the lists differ in length or are empty.
    """
    metric = library("sacrebleu", "BLEU").BLEU(tokenize=tokenize, lowercase=lowercase)
    return _score(metric, references, hypotheses)


def chrf(references: Sequence[str], hypotheses: Sequence[str], *, word_order: int = 0) -> TranslationScore:
    """Corpus chrF, an F score of character n-grams; ``word_order=2`` is chrF++.

    Raises:
        ConfigError: sacrebleu is not installed.
        ValueError: the lists differ in length or are empty.
    """
    return _score(library("sacrebleu", "chrF").CHRF(word_order=word_order), references, hypotheses)


def _score(metric: object, references: Sequence[str], hypotheses: Sequence[str]) -> TranslationScore:
    check_pairs(references, hypotheses)
    result = metric.corpus_score(list(hypotheses), [list(references)])  # type: ignore[attr-defined]
    return TranslationScore(float(result.score), str(metric.get_signature()))  # type: ignore[attr-defined]
