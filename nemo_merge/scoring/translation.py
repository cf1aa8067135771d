"""BLEU and chrF for speech translation, by sacrebleu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ._libraries import library
from .error_rates import check_pairs

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int


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


def resampled_bleu(
    references: Sequence[str],
    hypotheses: Sequence[str],
    drawn: Int[np.ndarray, "samples utterances"],
    *,
    tokenize: str | None = None,
    lowercase: bool = False,
) -> Float[np.ndarray, " samples"]:
    """Corpus BLEU of samples of the utterances, for bootstrap intervals (Koehn, 2004, EMNLP).

    Args:
        references: translations by people, one per utterance.
        hypotheses: those of the system, in the same order.
        drawn: how often every utterance is in a sample; the same samples for several systems make a paired test.
        tokenize: sacrebleu's tokeniser; see :func:`bleu`.
        lowercase: ignore case.

    Raises:
        ConfigError: sacrebleu is not installed.
        ValueError: the lists differ in length or are empty.
    """
    import numpy as np

    metric = library("sacrebleu", "BLEU").BLEU(tokenize=tokenize, lowercase=lowercase, effective_order=True)
    check_pairs(references, hypotheses)
    found = [metric.sentence_score(theirs, [ours]) for ours, theirs in zip(references, hypotheses, strict=True)]
    orders = len(found[0].counts)
    statistics = np.array([[*item.counts, *item.totals, item.sys_len, item.ref_len] for item in found], dtype=np.int64)
    return np.array(
        [
            metric.compute_bleu(
                correct=sums[:orders].tolist(),
                total=sums[orders : 2 * orders].tolist(),
                sys_len=int(sums[-2]),
                ref_len=int(sums[-1]),
                smooth_method=metric.smooth_method,
            ).score
            for sums in drawn @ statistics
        ]
    )


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
