"""Normalises text and keeps words whole, by the rules of their language."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from .basic import Blanks, drop_annotations

# Marks that join parts of a word when they stand between letters or digits. Elsewhere they are punctuation.
_INSIDE = {
    "en": "'",  # don't; a hyphen is as often a matter of style (well-known)
    "ca": "'-·",  # col·legi, anar-se'n
}
_INSIDE_ANYWHERE = "'-"  # fa-lo-ei, d'água, l'homme, rendez-vous

# Other writings of the apostrophe (quotation marks, letter, accents), the hyphen and the middle dot; soft hyphens go.
_FOLDED = str.maketrans(
    dict.fromkeys("\u2019\u2018\u02bc\u00b4`", "'")
    | dict.fromkeys("\u2010\u2011", "-")
    | {"\u2027": "·", "\u00ad": None}
)

# Languages whose I has no dot: Turkish and Azerbaijani.
_DOTLESS = str.maketrans({"I": "\u0131", "\u0130": "i"})


def words_of(text: str, language: str | None, *, casing: str = "lower", punctuation: str = "remove") -> str:
    """Text whose words can be compared.

    Args:
        text: anything; what stands in brackets is dropped.
        language: BCP-47 tag, such as ``pt-PT``; it decides which marks belong to words and how letters are lowered.
        casing: ``"lower"`` or ``"keep"``.
        punctuation: ``"remove"`` keeps only marks inside words; ``"keep"`` keeps all where they are.

    Example:
        >>> words_of("Fa-lo-ei — d’água, [riso] já!", "pt-PT")
        "fa-lo-ei d'água já"
    """
    primary = primary_language(language)
    text = unicodedata.normalize("NFKC", drop_annotations(text).translate(_FOLDED))
    if casing == "lower":
        text = lowered(text, primary)
    if punctuation == "remove":
        inside = _INSIDE.get(primary or "", _INSIDE_ANYWHERE)
        text = _loose(inside).sub(" ", text.translate(_blanks(inside)))
    return " ".join(text.split())


def lowered(text: str, language: str | None) -> str:
    """Lower case as the language has it.

    Example:
        >>> lowered("ISI", "tr"), lowered("ISI", "pt")
        ('ısı', 'isi')
    """
    if primary_language(language) in ("tr", "az"):
        text = text.translate(_DOTLESS)
    return text.lower()


def primary_language(language: str | None) -> str | None:
    """``pt`` of ``pt-PT`` or ``pt_BR``."""
    return re.split("[-_]", language)[0].lower() if language else None


@lru_cache
def _blanks(inside: str) -> Blanks:
    return Blanks("SP", keep=inside)


@lru_cache
def _loose(inside: str) -> re.Pattern[str]:
    """Matches marks of ``inside`` that do not stand between two letters or digits."""
    # What is left beside them is letters, digits, combining marks and private-use characters, which mark tagged words.
    letter = rf"[^\s{re.escape(inside)}\ue000-\uf8ff]"
    return re.compile(rf"(?<!{letter})[{re.escape(inside)}]|[{re.escape(inside)}](?!{letter})")
