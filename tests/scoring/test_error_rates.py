from __future__ import annotations

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_merge.scoring import ErrorCounts, character_error_rate, word_error_rate
from nemo_merge.scoring.error_rates import sum_counts, word_errors


def test_counts_by_hand():
    counts = word_error_rate(["o gato preto dorme aqui", "bom dia"], ["o pato dorme aqui bem", "bom dia"])
    assert counts == ErrorCounts(
        substitutions=1, deletions=1, insertions=1, reference_length=7, utterances=2, wrong_utterances=1
    )
    assert counts.rate == pytest.approx(3 / 7)
    assert (counts.errors, counts.correct) == (3, 5)


def test_characters_by_hand():
    counts = character_error_rate(["gato"], ["gatos"])
    assert (counts.insertions, counts.errors, counts.rate) == (1, 1, 0.25)


WORDS = st.lists(st.sampled_from(["a", "b", "c", "dia"]), min_size=1, max_size=6).map(" ".join)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_rates_are_those_of_jiwer_on_the_whole_corpus(pairs):
    references, hypotheses = map(list, zip(*pairs, strict=True))
    assert word_error_rate(references, hypotheses).rate == pytest.approx(jiwer.wer(references, hypotheses))
    assert character_error_rate(references, hypotheses).rate == pytest.approx(jiwer.cer(references, hypotheses))


def test_utterances_add_up():
    references, hypotheses = ["a b", "c"], ["a", "c d"]
    assert sum_counts(word_errors(references, hypotheses)) == word_error_rate(references, hypotheses)


def test_an_empty_hypothesis_is_all_deletions():
    assert word_error_rate(["a b c"], [""]).deletions == 3


def test_lists_that_do_not_fit():
    with pytest.raises(ValueError, match="one hypothesis per reference"):
        word_error_rate(["a"], [])
    with pytest.raises(ValueError, match="one hypothesis per reference"):
        word_error_rate([], [])
    with pytest.raises(ValueError, match="no words"):
        _ = ErrorCounts(0, 0, 1, 0).rate
