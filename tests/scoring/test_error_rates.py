from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_merge.scoring import ErrorCounts, character_error_rate, mixed_error_rate, word_error_rate
from nemo_merge.scoring.error_rates import sum_counts, utterance_errors, word_errors
from nemo_merge.scoring.tokens import words

jiwer = pytest.importorskip("jiwer")


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


def test_mixed_by_hand():
    """房 for 房间 is a deletion, look for book a substitution; 我 想 book 房 间 are five tokens."""
    counts = mixed_error_rate(["我想 book 房间", "ok"], ["我想 look 房", "o k"])
    assert (counts.substitutions, counts.deletions, counts.insertions, counts.reference_length) == (2, 1, 1, 6)
    assert counts.rate == pytest.approx(4 / 6)
    assert word_error_rate(["我想 book 房间"], ["我想 look 房"]).rate == pytest.approx(2 / 3)


@pytest.mark.parametrize("rate", [word_error_rate, character_error_rate, mixed_error_rate])
@given(texts=st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_identity_is_free_of_errors(rate, texts):
    assert rate(texts, texts).errors == 0


@given(
    st.lists(st.tuples(st.text("ab 我", max_size=8), st.text("ab 我", max_size=8)), min_size=2, max_size=6),
    st.randoms(),
)
def test_order_and_parts_do_not_matter(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    for rate in (word_error_rate, character_error_rate, mixed_error_rate):
        whole = rate(*map(list, zip(*pairs, strict=True)))
        assert rate(*map(list, zip(*shuffled, strict=True))) == whole
        parts = [rate(*map(list, zip(*part, strict=True))) for part in (pairs[:1], pairs[1:])]
        assert sum_counts(parts) == whole


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


def test_an_empty_reference_is_all_insertions():
    counts = word_error_rate(["", "a"], ["x y", "a"])
    assert (counts.insertions, counts.rate) == (2, 2.0)


def test_costs_of_sclite():
    assert utterance_errors(["a b"], ["b c"], words, "sclite")[0].errors == 2
    assert utterance_errors(["a b"], ["b c"])[0].substitutions == 2


@pytest.mark.nemo
def test_nemo_counts_alike():
    metric = pytest.importorskip("nemo.collections.asr.metrics.wer").word_error_rate
    references, hypotheses = ["o gato preto dorme", "bom dia", "a b c"], ["o pato dorme aqui", "bom dia", "c"]
    assert metric(hypotheses, references) == pytest.approx(word_error_rate(references, hypotheses).rate)
    by_character = metric(hypotheses, references, use_cer=True)
    assert by_character == pytest.approx(character_error_rate(references, hypotheses).rate)


def test_lists_that_do_not_fit():
    with pytest.raises(ValueError, match="its letters would be taken"):
        word_error_rate("a b", "a b")
    with pytest.raises(ValueError, match="one hypothesis per reference"):
        word_error_rate(["a"], [])
    with pytest.raises(ValueError, match="one hypothesis per reference"):
        word_error_rate([], [])
    with pytest.raises(ValueError, match="no words"):
        _ = ErrorCounts(0, 0, 1, 0).rate
