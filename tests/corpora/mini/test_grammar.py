from __future__ import annotations

import itertools
import re
import unicodedata

import pytest

from nemo_merge.corpora.mini import IN_DOMAIN, NAMES, OUT_OF_DOMAIN, load, split_of

pytest.importorskip("num2words")

PORTUGUESE = set(" abcdefghijklmnopqrstuvwxyzàáâãçéêíóôõú")


def sentences(name: str, count: int, seed: int = 0):
    return list(itertools.islice(load(name).sentences(seed), count))


def test_the_sets_are_those_that_are_promised():
    assert len(IN_DOMAIN) == 10
    assert len(OUT_OF_DOMAIN) == 5
    assert {load(name).role for name in NAMES} == {
        "in_domain",
        "out_of_domain",
        "variety",
        "language",
        "code_switching",
        "translation",
        "base",
    }
    assert {load(name).language for name in NAMES} == {"pt-PT", "pt-BR", "en", "es", "it", "de"}


@pytest.mark.parametrize("name", NAMES)
def test_sentences_are_plain_unique_and_repeatable(name):
    drawn = sentences(name, 500)
    texts = [sentence.text for sentence in drawn]
    assert len(set(texts)) == 500
    assert drawn == sentences(name, 500)
    assert texts != [sentence.text for sentence in sentences(name, 500, seed=1)]
    for text in texts:
        assert text == " ".join(text.split()) == text.lower()
        assert not re.search(r"[^\w ]|\d|_", text), text
        assert unicodedata.normalize("NFC", text) == text
        assert len(text.split()) >= 1


@pytest.mark.parametrize(
    "name", [name for name in NAMES if load(name).language == "pt-PT" and load(name).role != "code_switching"]
)
def test_portuguese_is_spelt_with_portuguese_letters(name):
    assert set("".join(sentence.text for sentence in sentences(name, 400))) <= PORTUGUESE


@pytest.mark.parametrize("name", NAMES)
def test_spans_cover_the_sentence(name):
    for sentence in sentences(name, 100):
        covered = " ".join(sentence.text[start:end] for _, start, end in sentence.spans)
        assert covered == sentence.text


def test_code_switching_has_two_languages_and_says_where():
    drawn = sentences("code_switching", 200)
    assert all({language for language, *_ in sentence.spans} == {"pt", "en"} for sentence in drawn)
    sentence = next(s for s in drawn if "software update" in s.text)
    assert any(
        language == "en" and sentence.text[start:end] == "software update" for language, start, end in sentence.spans
    )
    assert '<voice xml:lang="en">software update</voice>' in sentence.ssml("pt")


def test_translations_say_the_same_in_every_language():
    portuguese, spanish = (
        {sentence.translation: sentence.text for sentence in sentences(name, 6000)}
        for name in ("translated_portuguese", "translated_spanish")
    )
    assert len(portuguese) == len(spanish) == 6000  # a sentence for every meaning
    assert portuguese["the broken clock is on the beach"] == "o relógio partido está na praia"
    assert spanish["the broken clock is on the beach"] == "el reloj roto está en la playa"
    # The words of English, in another order than those of Portuguese.
    assert portuguese["the driver lost the small key this morning"] == "esta manhã o motorista perdeu a chave pequena"
    assert len(set(portuguese) & set(spanish)) > 1000
    assert {word for text in portuguese for word in text.split()} == {word for text in spanish for word in text.split()}


def test_sets_without_translations_have_none():
    assert {sentence.translation for sentence in sentences("telephone", 50)} == {None}


def test_numbers_are_european():
    words = {word for sentence in sentences("read_news", 1500) for word in sentence.text.split()}
    assert "dezasseis" in words | {w for s in sentences("broadcast_news", 1500) for w in s.text.split()}
    assert "dezesseis" not in words


def test_prepositions_contract():
    text = " ".join(sentence.text for name in (*IN_DOMAIN, *OUT_OF_DOMAIN) for sentence in sentences(name, 300))
    assert not re.search(r"\b(de|em|por) (o|a|os|as)\b", text)


def test_splits_depend_on_the_sentence_alone():
    texts = [sentence.text for sentence in sentences("telephone", 2000)]
    shares = [sum(split_of(text) == split for text in texts) / 2000 for split in ("train", "dev", "test")]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.03)


def test_out_of_domain_speakers_are_unseen():
    trained = {voice for name in NAMES if load(name).role in ("in_domain", "base") for voice in load(name).voices}
    for name in OUT_OF_DOMAIN:
        assert not trained & set(load(name).voices)


def test_the_base_knows_the_words_of_the_domains_but_not_their_sentences():
    base = {sentence.text for sentence in sentences("general", 9000)}
    words = {word for text in base for word in text.split()}
    for name in IN_DOMAIN:
        said = sentences(name, 300)
        known = [word in words for sentence in said for word in sentence.text.split()]
        assert sum(known) / len(known) > 0.98
        assert sum(sentence.text in base for sentence in said) == 0


def test_unknown_sets_and_exhausted_grammars():
    with pytest.raises(KeyError, match="no set 'radio'"):
        load("radio")
    with pytest.raises(RuntimeError, match="has only"):
        list(load("ood_garden").sentences(0))
