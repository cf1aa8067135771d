"""The named text profiles, and which languages they are for."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Any

from ...errors import ConfigError, did_you_mean
from .._libraries import library
from .basic import whisper_basic
from .portuguese_numbers import spell_numbers
from .spelling_reform import SPELLINGS, unify_spelling
from .words import primary_language, words_of

logger = logging.getLogger("nemo_merge")

PROFILES = {
    "none": "the text as it is; only runs of white space count as one",
    "whisper_basic": "Whisper's BasicTextNormalizer: lower case, no punctuation, words cut at hyphens and apostrophes",
    "whisper_marks": "the same, but combining marks stay: for Hindi, Bengali, Tamil, Thai and the like",
    "whisper_english": "Whisper's EnglishTextNormalizer; for English alone",
    "words": "lower case, no punctuation, words kept whole (fa-lo-ei, d'água) by the rules of their language",
    "pt_ep": "words, with numbers in the words of European Portuguese",
}

# Languages whose scripts write vowels as combining marks, which whisper_basic removes.
_MARKED = frozenset(re.findall(r"\w+", "as bn bo dv dz gu hi km kn ks lo mai ml mr my ne or pa sa sd si ta te th"))
_CASINGS = ("lower", "keep")
_PUNCTUATIONS = ("remove", "keep")


def normaliser(
    profile: str,
    language: str | None = None,
    *,
    casing: str = "lower",
    punctuation: str = "remove",
    spelling: str | None = None,
) -> Callable[[str], str]:
    """A function that makes texts of one language comparable.

    Args:
        profile: one of :data:`PROFILES`.
        language: BCP-47 tag of the texts; ``None`` if it is not known.
        casing: ``"lower"`` or ``"keep"``; profiles ``words`` and ``pt_ep``.
        punctuation: ``"remove"`` or ``"keep"``; profiles ``words`` and ``pt_ep``.
        spelling: ``"ao90"`` or ``"ao90_variants"`` makes Portuguese spellings from before and after the Orthographic
            Agreement of 1990 equal, see :func:`~nemo_merge.scoring.text.spelling_reform.unify_spelling`; other
            languages are left alone.

    Example:
        >>> normaliser("whisper_basic")("Fa-lo-ei às 16.")
        'fa lo ei às 16'
        >>> normaliser("pt_ep", "pt-PT")("Fa-lo-ei às 16.")
        'fa-lo-ei às dezasseis'

    Raises:
        ConfigError: an unknown profile or option, a profile that is wrong for the language, or an option that the
            profile does not have.
    """
    check_profile(profile)
    _check_options(profile, casing, punctuation, spelling)
    _check_language(profile, primary_language(language))
    step = _step(profile, language, casing, punctuation)
    if spelling is None or primary_language(language) not in ("pt", None):
        return step
    return lambda text: step(unify_spelling(unicodedata.normalize("NFC", text), spelling))


def check_profile(name: str) -> None:
    """Refuses names that no profile has.

    Raises:
        ConfigError: there is no such profile.
    """
    if name not in PROFILES:
        raise ConfigError(f"there is no text profile {name!r}{did_you_mean(name, PROFILES)}")


def _step(profile: str, language: str | None, casing: str, punctuation: str) -> Callable[[str], str]:
    if profile == "none":
        return lambda text: " ".join(text.split())
    if profile == "whisper_basic":
        return whisper_basic
    if profile == "whisper_marks":
        return lambda text: whisper_basic(text, keep_marks=True)
    if profile == "whisper_english":
        english: Any = library("whisper_normalizer.english", f"the text profile {profile}", "whisper-normalizer")
        return english.EnglishTextNormalizer()
    if profile == "words":
        return lambda text: words_of(text, language, casing=casing, punctuation=punctuation)
    return lambda text: words_of(spell_numbers(text), "pt", casing=casing, punctuation=punctuation)


def _check_options(profile: str, casing: str, punctuation: str, spelling: str | None) -> None:
    for name, value, known in (
        ("casing", casing, _CASINGS),
        ("punctuation", punctuation, _PUNCTUATIONS),
        ("spelling", spelling, (None, *SPELLINGS)),
    ):
        if value not in known:
            raise ConfigError(f"{name}={value!r} is none of {', '.join(filter(None, known))}")
    if profile not in ("words", "pt_ep") and (casing, punctuation) != ("lower", "remove"):
        raise ConfigError(
            f"the text profile {profile} has fixed rules for casing and punctuation; use words, or pt_ep for Portuguese"
        )


def _check_language(profile: str, language: str | None) -> None:
    if profile == "whisper_english" and language != "en":
        harm = "turns the Portuguese article 'o' into 0 and strips accents"
        if language is None:
            raise ConfigError(
                f"the text profile whisper_english is for English alone (it {harm}), and the language of the texts is "
                "not known; say so with language='en' (--language en)"
            )
        raise ConfigError(
            f"the text profile whisper_english is for English alone (it {harm}), and the texts are in {language!r}; "
            "use whisper_basic there"
        )
    if profile == "pt_ep" and language not in ("pt", None):
        raise ConfigError(
            f"the text profile pt_ep is for Portuguese, and the texts are in {language!r}; use words there"
        )
    if profile == "whisper_basic" and language in _MARKED:
        _warn_of_marks(language)


@cache
def _warn_of_marks(language: str) -> None:
    """Once for every language."""
    logger.warning(
        "whisper_basic removes combining marks, and with them vowels of %r; whisper_marks keeps them", language
    )
