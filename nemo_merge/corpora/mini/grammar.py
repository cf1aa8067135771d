"""Slot grammars: what the embedded corpus says.

A sentence is drawn from a template by filling ``{slot}`` from the grammar's word lists, ``{slot:low-high}`` with a
number in words and ``{slot:digits}`` with a string of digits in words. ``<en>..</en>`` marks words in another language.
In a grammar with translations every template and word reads ``sentence | translation``; both sides are filled alike.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import yaml

from .conditions import Condition, Interval

_SLOT = re.compile(r"\{(\w+)(?::([\d-]+))?\}")
_SPAN = re.compile(r"<(\w+)>(.*?)</\1>")
_CONTRACTION = re.compile(r"\b(de|em|por) (o|a|os|as)\b")
_CONTRACTED = {"de": "d", "em": "n", "por": "pel"}
_DIGITS = ("zero", "um", "dois", "três", "quatro", "cinco", "seis", "sete", "oito", "nove")
IN_DOMAIN = (
    "broadcast_news", "lectures", "read_news", "read_crowd", "audiobooks",
    "interviews", "conversational", "parliament", "telephone", "children",
)  # fmt: skip
OUT_OF_DOMAIN = ("ood_kitchen", "ood_football", "ood_radio", "ood_museum", "ood_garden")
OTHERS = ("brazilian", "english", "spanish", "italian", "german", "code_switching", "general")
TRANSLATED = ("translated_portuguese", "translated_spanish")
NAMES = IN_DOMAIN + OUT_OF_DOMAIN + OTHERS + TRANSLATED


@dataclass(frozen=True)
class Sentence:
    """A transcript and the language of each of its parts.

    Attributes:
        text: lower-case words separated by single spaces.
        spans: ``(espeak-ng language, start, end)`` with character offsets into ``text``; together they cover all words.
        translation: of the sentence, if the grammar has one.
    """

    text: str
    spans: tuple[tuple[str, int, int], ...]
    translation: str | None = None

    def ssml(self, main: str) -> str:
        """The sentence as SSML that switches language (not speaker) where a span leaves the language ``main``."""
        parts = []
        for language, start, end in self.spans:
            words = self.text[start:end]
            parts.append(words if language == main else f'<voice xml:lang="{language}">{words}</voice>')
        return f"<speak>{' '.join(parts)}</speak>"


@dataclass(frozen=True)
class Grammar:
    """One set of the corpus: what is said, who says it and where.

    Attributes:
        role: ``in_domain``, ``out_of_domain``, ``variety``, ``language``, ``code_switching``, ``translation`` or
            ``base``.
        language: BCP-47 tag, for example ``pt-PT``.
        voices: espeak-ng voice variants, the speakers.
        rate, pitch, pitch_range, formant_shift: intervals of the prosody, see :class:`~.speech.Voice`.
        conditions: recording conditions, one of them drawn for every utterance.
        text_of: for the base set, the roles of the sets whose phrases and words it strings together at random.
        parts_per_sentence: how many phrases, or pairs of words, make such a sentence.
        translation_language: BCP-47 tag of the translations, if there are any.
    """

    name: str
    title: str
    role: str
    language: str
    voices: tuple[str, ...]
    conditions: tuple[Condition, ...]
    rate: Interval
    pitch: Interval
    pitch_range: Interval = (40.0, 60.0)
    formant_shift: Interval = (1.0, 1.0)
    templates: tuple[str, ...] = ()
    slots: dict[str, tuple[str, ...]] | None = None
    text_of: tuple[str, ...] = ()
    parts_per_sentence: tuple[int, int] = (1, 3)
    translation_language: str | None = None

    @property
    def espeak_language(self) -> str:
        """espeak-ng's name of the language: ``pt`` is European Portuguese there."""
        return {"pt-PT": "pt", "pt-BR": "pt-br"}.get(self.language, self.language)

    def sentences(self, seed: int) -> Iterator[Sentence]:
        """Endless stream of random sentences without repetition, the same for the same seed.

        Raises:
            RuntimeError: the grammar has no more unseen sentences.
        """
        rng = random.Random(f"{seed}/{self.name}")
        seen: set[str] = set()
        misses = 0
        while misses < 10000:
            sentence = self._draw(rng)
            if sentence.text in seen:
                misses += 1
                continue
            misses = 0
            seen.add(sentence.text)
            yield sentence
        raise RuntimeError(f"the grammar {self.name!r} has only {len(seen)} sentences")

    def phrases(self) -> set[str]:
        """The entries of the grammar's word lists and the fixed parts of its templates."""
        listed = [_side(value, 0) for values in (self.slots or {}).values() for value in values]
        fixed = [part for template in self.templates for part in _SLOT.sub("\n", _side(template, 0)).split("\n")]
        return {" ".join(_SPAN.sub(r"\2", part).split()) for part in [*listed, *fixed]} - {""}

    def _draw(self, rng: random.Random) -> Sentence:
        if self.text_of:
            phrases, words = _lexicon(self.text_of)
            count = rng.randint(*self.parts_per_sentence)
            parts = [
                rng.choice(phrases) if rng.random() < 0.6 else " ".join(rng.choices(words, k=2)) for _ in range(count)
            ]
            return _parse(" ".join(parts), self.espeak_language)
        slots = self.slots or {}
        picked: dict[str, str] = {}

        def fill(match: re.Match[str]) -> str:
            name, numeric = match.groups()
            if numeric:
                return _number_words(numeric, self.espeak_language, rng)
            picked[name] = rng.choice(slots[name])
            return _side(picked[name], 0)

        template = rng.choice(self.templates)
        text = _fill_all(_side(template, 0), fill)
        if self.espeak_language.startswith("pt"):
            text = _CONTRACTION.sub(lambda match: _CONTRACTED[match[1]] + match[2], text)
        sentence = _parse(text, self.espeak_language)
        if self.translation_language is None:
            return sentence
        return replace(sentence, translation=_fill_all(_side(template, 1), lambda match: _side(picked[match[1]], 1)))


def _side(text: str, index: int) -> str:
    """The sentence (0) or the translation (1) of an entry."""
    return text.split(" | ")[index]


def _fill_all(text: str, fill: Callable[[re.Match[str]], str]) -> str:
    """Fills slots until none is left: what fills one may have slots itself."""
    while _SLOT.search(text):
        text = _SLOT.sub(fill, text)
    return text


@functools.cache
def load(name: str) -> Grammar:
    """The grammar of one set, by name.

    Raises:
        KeyError: there is no such set.
    """
    if name not in NAMES:
        raise KeyError(f"EP-mini has no set {name!r}; it has {', '.join(NAMES)}")
    text = resources.files(__package__).joinpath("grammars", f"{name}.yaml").read_text(encoding="utf-8")
    values: dict[str, Any] = yaml.safe_load(text)
    condition = values.pop("condition")
    values["conditions"] = tuple(map(Condition.parse, condition if isinstance(condition, list) else [condition]))
    values["slots"] = {key: tuple(items) for key, items in values.get("slots", {}).items()}
    for key, value in values.items():
        if isinstance(value, list):
            values[key] = tuple(value)
    return Grammar(name=name, **values)


@functools.cache
def _lexicon(roles: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Phrases and single words, numerals included, of all sets of the given roles."""
    from num2words import num2words

    phrases = {phrase for name in NAMES if load(name).role in roles for phrase in load(name).phrases()}
    phrases |= {num2words(number, lang="pt") for number in [*range(100), *range(100, 1000, 100), *range(1900, 2020)]}
    words = {word for phrase in phrases for word in phrase.split()}
    return sorted(phrases), sorted(words)


def _number_words(specification: str, language: str, rng: random.Random) -> str:
    from num2words import num2words

    if "-" not in specification:  # a count of digits, read one by one
        return " ".join(rng.choice(_DIGITS) for _ in range(int(specification)))
    low, high = map(int, specification.split("-"))
    words = num2words(rng.randint(low, high), lang=language.replace("pt-br", "pt_BR"))
    return re.sub(r"[-,]", " ", words).replace("  ", " ").lower()


def _parse(marked: str, main: str) -> Sentence:
    """Splits ``<en>..</en>`` marks off into spans."""
    text = ""
    spans: list[tuple[str, int, int]] = []

    def add(words: str, language: str) -> None:
        nonlocal text
        words = " ".join(words.split())
        if not words:
            return
        start = len(text) + 1 if text else 0
        text = f"{text} {words}" if text else words
        if spans and spans[-1][0] == language:
            spans[-1] = (language, spans[-1][1], len(text))
        else:
            spans.append((language, start, len(text)))

    position = 0
    for match in _SPAN.finditer(marked):
        add(marked[position : match.start()], main)
        add(match[2], match[1])
        position = match.end()
    add(marked[position:], main)
    return Sentence(text, tuple(spans))
