"""Whisper's basic normaliser: what papers on languages other than English compare with."""

from __future__ import annotations

import re
import unicodedata

_BRACKETS = re.compile(r"[<\[][^>\]]*[>\]]")
_PARENTHESES = re.compile(r"\([^)]+?\)")


class Blanks(dict[int, str]):
    """Table for ``str.translate`` that turns characters of some Unicode categories into spaces; filled as they turn up.

    Args:
        categories: first letters of the categories: M marks, S symbols, P punctuation.
        keep: characters that stay all the same.
    """

    def __init__(self, categories: str, keep: str = "") -> None:
        self.categories = categories
        self.keep = keep

    def __missing__(self, code: int) -> str:
        character = chr(code)
        blank = character not in self.keep and unicodedata.category(character)[0] in self.categories
        self[code] = " " if blank else character
        return self[code]


_WITHOUT_MARKS = Blanks("MSP")
_WITH_MARKS = Blanks("SP")


def drop_annotations(text: str) -> str:
    """The text without what stands in angle brackets, square brackets or parentheses: noises and comments."""
    return _PARENTHESES.sub("", _BRACKETS.sub("", text))


def whisper_basic(text: str, *, keep_marks: bool = False) -> str:
    """Lower case; nothing in brackets; NFKC; marks, symbols and punctuation become spaces.

    The definition of ``BasicTextNormalizer`` (Radford et al., 2023, arXiv 2212.04356, appendix C), and the same result
    but for spaces at the ends. Letters with accents stay. Clitics fall apart, ``fa-lo-ei`` into three words, and so do
    numbers.

    Args:
        text: anything.
        keep_marks: keep combining marks. Whisper removes them, and with them the vowels of Hindi, Bengali and Tamil.
    """
    text = unicodedata.normalize("NFKC", drop_annotations(text.lower()))
    return " ".join(text.translate(_WITH_MARKS if keep_marks else _WITHOUT_MARKS).lower().split())
