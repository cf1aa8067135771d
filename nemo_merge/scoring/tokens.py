"""Cuts text into what is counted: words, characters, or both by script."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

Tokeniser = Callable[[str], list[str]]

# Scripts written without spaces whose characters are counted one by one: Han, with its iteration mark and zero, and
# the Japanese syllabaries. Thai, Lao, Khmer and Burmese have no spaces either; use character error rates there.
_HAN = r"\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_KANA = r"\u3041-\u3096\u309d-\u309f\u30a1-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_HAN_CHARACTER = re.compile(f"[{_HAN}]")
_KANA_CHARACTER = re.compile(f"[{_KANA}]")
_MIXED = re.compile(rf"[{_HAN}{_KANA}]|[^\s{_HAN}{_KANA}]+")


def words(text: str) -> list[str]:
    """What stands between white space."""
    return text.split()


def characters(text: str) -> list[str]:
    """Characters (Unicode code points), with one space between words and none at the ends."""
    return list(" ".join(text.split()))


def mixed_tokens(text: str) -> list[str]:
    """Han characters and kana one by one, words of other scripts whole.

    Example:
        >>> mixed_tokens("我想 book 一个room")
        ['我', '想', 'book', '一', '个', 'room']
    """
    return _MIXED.findall(text)


@lru_cache(maxsize=65536)
def script(token: str) -> str | None:
    """Script of the first letter of a token, such as ``"Latin"`` or ``"Han"``; ``None`` without letters.

    Example:
        >>> script("book"), script("我"), script("кот"), script("42")
        ('Latin', 'Han', 'Cyrillic', None)
    """
    for character in token:
        if _HAN_CHARACTER.match(character):
            return "Han"
        if _KANA_CHARACTER.match(character):
            return "Kana"
        if unicodedata.category(character).startswith("L"):
            # Names of letters begin with their script: "LATIN SMALL LETTER A", "FULLWIDTH LATIN CAPITAL LETTER A".
            name = unicodedata.name(character, "UNKNOWN").removeprefix("FULLWIDTH ")
            return name.partition(" ")[0].capitalize()
    return None
