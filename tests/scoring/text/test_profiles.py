# ruff: noqa: RUF001
from __future__ import annotations

import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nemo_merge.errors import ConfigError
from nemo_merge.scoring import normaliser
from nemo_merge.scoring.text import PROFILES
from nemo_merge.scoring.text.profiles import _warn_of_marks
from nemo_merge.scoring.text.words import lowered, words_of

PORTUGUESE = "Fa-lo-ei — d’água, [riso] às 16; R$ 10 (pausa) é a 3.ª vez, Sr. <ruído> Acção!"


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("none", PORTUGUESE),
        ("whisper_basic", "fa lo ei d água às 16 r 10 é a 3 a vez sr acção"),
        ("whisper_marks", "fa lo ei d água às 16 r 10 é a 3 a vez sr acção"),
        ("words", "fa-lo-ei d'água às 16 r 10 é a 3 a vez sr acção"),
        ("pt_ep", "fa-lo-ei d'água às dezasseis dez reais é a terceira vez sr acção"),
    ],
)
def test_portuguese(profile, expected):
    assert normaliser(profile, "pt-PT")(PORTUGUESE) == expected


@given(st.text(max_size=40))
def test_whisper_basic_is_whispers(text):
    theirs = pytest.importorskip("whisper_normalizer.basic").BasicTextNormalizer()
    assert normaliser("whisper_basic")(text) == theirs(text).strip()


@given(st.text("aé ãº1½-'’.[](<>\u0301\u200b漢हिİ", max_size=20))
def test_whisper_basic_is_whispers_on_hard_text(text):
    normalizer = pytest.importorskip("whisper_normalizer.basic").BasicTextNormalizer
    assert normaliser("whisper_basic")(text) == normalizer()(text).strip()
    assert normaliser("whisper_marks")(text) == normalizer(preserve_marks=True)(text).strip()


@pytest.mark.parametrize("profile", sorted({*PROFILES} - {"whisper_english", "none"}))
@given(text=st.text(max_size=30))
def test_doing_it_twice_changes_nothing(profile, text):
    """But for fractions and superscripts, which become digits, and letters whose lower case changes once more."""
    step = normaliser(profile)
    once = step(text)
    assume(not any(unicodedata.category(character) == "No" for character in text))
    assume(unicodedata.normalize("NFKC", once.lower()) == once)
    assert step(once) == once


def test_english_needs_english():
    pytest.importorskip("whisper_normalizer")
    assert (
        normaliser("whisper_english", "en-GB")("Mr. Smith's colour, o'clock 2nd") == "mister smith is color 0 clock 2nd"
    )
    with pytest.raises(ConfigError, match=r"article 'o' into 0.*texts are in 'pt'; use whisper_basic"):
        normaliser("whisper_english", "pt-PT")
    with pytest.raises(ConfigError, match="is not known; say so with language='en'"):
        normaliser("whisper_english")


def test_the_guard_is_worth_it():
    """What Whisper's English normaliser does to Portuguese."""
    english = pytest.importorskip("whisper_normalizer.english").EnglishTextNormalizer()
    assert english("o Sr. Conceição") == "0 senior conceicao"


def test_marks_of_indic_scripts(caplog):
    _warn_of_marks.cache_clear()
    for _ in range(2):
        assert normaliser("whisper_basic", "hi")("हिन्दी") == "ह न द"
    assert caplog.messages == [
        "whisper_basic removes combining marks, and with them vowels of 'hi'; whisper_marks keeps them"
    ]
    caplog.clear()
    assert normaliser("whisper_marks", "hi")("हिन्दी।") == "हिन्दी"
    assert normaliser("whisper_basic", "pt-PT")("ação") == "ação"
    assert not caplog.messages


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"profile": "whisper"}, "there is no text profile 'whisper'; did you mean"),
        ({"profile": "pt_ep", "language": "de"}, "is for Portuguese, and the texts are in 'de'"),
        ({"profile": "words", "casing": "upper"}, "casing='upper' is none of lower, keep"),
        ({"profile": "whisper_basic", "casing": "keep"}, "has fixed rules for casing and punctuation"),
        ({"profile": "words", "spelling": "ao45"}, "spelling='ao45' is none of ao90, ao90_variants"),
    ],
)
def test_wrong_options(arguments, message):
    with pytest.raises(ConfigError, match=message):
        normaliser(**arguments)


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("L'homme, aujourd’hui", "fr", "l'homme aujourd'hui"),
        ("col·legi anar-se'n", "ca", "col·legi anar-se'n"),
        ("well-known don't rock 'n' roll", "en", "well known don't rock n roll"),
        ("-- 'sim' fim- a--b", "pt", "sim fim a b"),
        ("snake_case a\u00adb", None, "snake case ab"),
        ("ＡＢＣ，你好。", "zh", "abc 你好"),
    ],
)
def test_words_by_language(text, language, expected):
    assert words_of(text, language) == expected


def test_casing_and_punctuation_may_stay():
    keep = normaliser("words", "pt", casing="keep", punctuation="keep")
    assert keep("Bom  dia, Ana!") == "Bom dia, Ana!"
    assert normaliser("words", "pt", casing="keep")("Bom dia, Ana!") == "Bom dia Ana"


def test_the_turkish_i():
    assert lowered("IĞDIR İzmir", "tr-TR") == "ığdır izmir"
    assert lowered("IGDIR", "pt") == "igdir"


def test_spelling_is_for_portuguese():
    assert normaliser("words", "pt-PT", spelling="ao90")("ACÇÃO directa") == "ação direta"
    assert normaliser("words", "fr", spelling="ao90")("action directe acção") == "action directe acção"
