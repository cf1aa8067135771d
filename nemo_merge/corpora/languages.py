"""Which words of a transcript are in which language: by script, or by the tags of a corpus."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

from .sessions import Span

LATIN, HAN, DEVANAGARI, BENGALI, ARABIC = "LATIN", "CJK", "DEVANAGARI", "BENGALI", "ARABIC"
"""First words of Unicode's names of the letters of a script."""

_TAG = re.compile(r"<\s*(/?)\s*([^\s<>/=]+)((?:\s[^<>]*)?)>")
_VALUE = re.compile(r"""=\s*["'“”]?\s*([^"'“”\s>]+)""")


def spans_by_script(text: str, languages: Mapping[str, str]) -> tuple[Span, ...]:
    """Parts of a text by the script of their letters.

    Digits, marks and spaces belong to the part around them. A script that ``languages`` does not name belongs to the
    part before it.

    Args:
        text: a transcript.
        languages: BCP-47 tag by script, for example ``{HAN: "zh", LATIN: "en"}``.

    Example:
        >>> spans_by_script("我们 go home 吧", {HAN: "zh", LATIN: "en"})
        (('zh', 0, 2), ('en', 3, 10), ('zh', 11, 12))
    """
    spans: list[tuple[str, int, int]] = []
    for position, character in enumerate(text):
        language = languages.get(_script(character)) if character.isalpha() else None
        if language is None:
            continue
        if spans and spans[-1][0] == language:
            spans[-1] = (language, spans[-1][1], position + 1)
        else:
            spans.append((language, position, position + 1))
    return tuple((language, start, _end(text, start, end)) for language, start, end in spans)


def spans_of_words(words: Sequence[tuple[str, str | None]]) -> tuple[str, tuple[Span, ...]]:
    """Joins words with their languages to a text and its spans; a word without one belongs to no span.

    Example:
        >>> spans_of_words([("o", "pt"), ("team", "en"), ("leader", "en"), ("1", None)])
        ('o team leader 1', (('pt', 0, 1), ('en', 2, 13)))
    """
    text = ""
    spans: list[Span] = []
    for word, language in words:
        start = len(text) + 1 if text else 0
        text = f"{text} {word}" if text else word
        if language is None:
            continue
        if spans and spans[-1][0] == language and spans[-1][2] == start - 1:
            spans[-1] = (language, spans[-1][1], len(text))
        else:
            spans.append((language, start, len(text)))
    return text, tuple(spans)


def spans_from_tags(
    marked: str, tag: str, main: str, languages: Mapping[str, str], repaired: Callable[[str], None]
) -> tuple[str, tuple[Span, ...]]:
    """Reads ``<foreign lang="English">...</foreign>`` marks, and those with typing errors.

    Tags and language names that resemble a known one are taken for it; a tag that is opened twice, as where ``</`` was
    typed ``<``, is taken as closed. Other tags are left out with their angle brackets, what they enclose is kept.

    Args:
        marked: transcript with tags.
        tag: name of the tag that marks another language.
        main: BCP-47 tag of the words outside.
        languages: BCP-47 tag by the name that the corpus uses, in lower case.
        repaired: told about every repair.

    Returns:
        The text and its spans.

    Raises:
        ValueError: a tag names an unknown language, or is never closed.

    Example:
        >>> spans_from_tags('fui al <foreign lang="English"> mall </foreign> ayer', "foreign", "es", {"english": "en"},
        ...                 print)
        ('fui al mall ayer', (('es', 0, 6), ('en', 7, 11), ('es', 12, 16)))
    """
    words: list[tuple[str, str | None]] = []
    language, position = main, 0
    for match in _TAG.finditer(marked):
        words += [(word, language) for word in marked[position : match.start()].split()]
        position = match.end()
        closing, name, attributes = match.groups()
        if name.lower() != tag:
            if not get_close_matches(name.lower(), [tag], cutoff=0.75):
                continue
            repaired(f"{match[0]!r} is taken for <{closing}{tag}>")
        if language != main:
            if not closing:
                repaired(f"{match[0]!r} inside <{tag}> is taken for </{tag}>")
            language = main
        elif closing:
            repaired(f"{match[0]!r} closes nothing")
        else:
            language = _named(attributes, languages, match[0], repaired)
    if language != main:
        raise ValueError(f"<{tag}> is never closed")
    words += [(word, main) for word in marked[position:].split()]
    if any("<" in word or ">" in word for word, _ in words):
        raise ValueError("an angle bracket that is not part of a tag")
    return spans_of_words(words)


def language_tag(main: str, spans: Sequence[Span]) -> str:
    """BCP-47 tag of an utterance; where it is switched the languages joined by hyphens, the main one first.

    Example:
        >>> language_tag("pt-PT", [("pt-PT", 0, 5), ("en", 6, 10)])
        'pt-en'
        >>> language_tag("zh", [("en", 0, 4)])
        'en'
    """
    found = sorted({language for language, _, _ in spans})
    if not found or found == [main]:
        return main
    if len(found) == 1:
        return found[0]
    return "-".join([main.split("-")[0], *(tag for tag in found if tag != main)])


def _named(attributes: str, languages: Mapping[str, str], shown: str, repaired: Callable[[str], None]) -> str:
    value = _VALUE.search(attributes)
    name = value[1].lower() if value else ""
    if name not in languages:
        close = get_close_matches(name, languages, n=1, cutoff=0.75)
        if not close:
            raise ValueError(f"{shown!r} names no language that is known here ({', '.join(languages)})")
        repaired(f"{shown!r} is taken for {close[0].capitalize()}")
        name = close[0]
    return languages[name]


@functools.lru_cache(maxsize=1 << 14)
def _script(character: str) -> str:
    return unicodedata.name(character, "").split(" ", 1)[0].split("-", 1)[0]


def _end(text: str, start: int, end: int) -> int:
    """Marks that follow the last letter of a word belong to it: vowel signs, apostrophes, full stops."""
    while end < len(text) and not text[end].isspace() and not text[end].isalpha():
        end += 1
    return end
