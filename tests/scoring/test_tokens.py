# ruff: noqa: RUF001
from __future__ import annotations

import pytest

from nemo_merge.scoring.tokens import characters, mixed_tokens, script, words


def test_words_and_characters():
    assert words(" o  gato\n") == ["o", "gato"]
    assert characters(" o  gato\n") == list("o gato")
    assert words("") == characters(" ") == []


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("我想 book 房间", ["我", "想", "book", "房", "间"]),
        ("我想book房间42号", ["我", "想", "book", "房", "间", "42", "号"]),
        ("今日はNeMoのテスト", [*"今日は", "NeMo", *"のテスト"]),
        ("o gato d'água fa-lo-ei", ["o", "gato", "d'água", "fa-lo-ei"]),
        ("𠀀 〇 々", ["𠀀", "〇", "々"]),
        ("한국어 text", ["한국어", "text"]),  # Korean has spaces
    ],
)
def test_mixed_tokens(text, tokens):
    assert mixed_tokens(text) == tokens


@pytest.mark.parametrize(
    ("token", "name"),
    [("book", "Latin"), ("ção", "Latin"), ("Ｗ", "Latin"), ("我", "Han"), ("の", "Kana"), ("кот", "Cyrillic"),
     ("कुत्ता", "Devanagari"), ("كلب", "Arabic"), ("42", None), ("-", None), ("1st", "Latin")],
)  # fmt: skip
def test_script(token, name):
    assert script(token) == name
