"""Rows of transcripts after the text profiles of their languages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from .points_of_interest import tagged_tokens, without_tags
from .text import check_profile, normaliser
from .text.words import primary_language
from .tokens import mixed_tokens
from .transcripts import Problems, Row

Choice = str | Mapping[str, str]
"""One value for all languages, or values by language (``pt-PT`` before ``pt``), and that of the others under ``""``."""


@dataclass(frozen=True)
class TextOptions:
    """What is done to texts before they are compared; see :func:`~nemo_merge.scoring.text.normaliser`.

    Attributes:
        profile: name of the text profile, for all languages or by language.
        casing: ``"lower"`` or ``"keep"``, likewise.
        punctuation: ``"remove"`` or ``"keep"``, likewise.

    Raises:
        ConfigError: a name that no profile has, or another value.
    """

    profile: Choice = "whisper_basic"
    casing: Choice = "lower"
    punctuation: Choice = "remove"

    def __post_init__(self) -> None:
        for name in _values(self.profile):
            check_profile(name)
        for casing, punctuation in product(_values(self.casing), _values(self.punctuation)):
            normaliser("words", casing=casing, punctuation=punctuation)  # which refuses other values

    def __str__(self) -> str:
        text = _said(self.profile, "whisper_basic")
        for name, choice in (("casing", self.casing), ("punctuation", self.punctuation)):
            if "keep" in _values(choice):
                text += f"; {name} {_said(choice)}"
        return text

    def normaliser(self, language: str | None, spelling: str | None = None) -> Callable[[str], str]:
        """The function for texts of a language.

        Raises:
            ConfigError: the profile is not for that language, or has no such option.
        """
        return normaliser(
            _chosen(self.profile, language, "whisper_basic"),
            language,
            casing=_chosen(self.casing, language, "lower"),
            punctuation=_chosen(self.punctuation, language, "remove"),
            spelling=spelling,
        )


def _chosen(choice: Choice, language: str | None, default: str) -> str:
    if isinstance(choice, str):
        return choice
    names = (language or "", primary_language(language) or "", "")
    return next((choice[name] for name in names if name in choice), default)


def _values(choice: Choice) -> list[str]:
    return [choice] if isinstance(choice, str) else list(choice.values())


def _said(choice: Choice, default: str | None = None) -> str:
    if isinstance(choice, str):
        return choice
    rest = choice.get("", default)
    named = [f"{language}={value}" for language, value in choice.items() if language]
    return ", ".join([*named, rest] if rest else named)


@dataclass(frozen=True)
class Texts:
    """Comparable texts of the rows, in their order.

    Attributes:
        references: what was said.
        hypotheses: what was recognised, by system.
    """

    references: Sequence[str]
    hypotheses: Mapping[str, Sequence[str]]


def normalise(rows: Sequence[Row], options: TextOptions, spelling: str | None = None) -> Texts:
    """Applies the profile of each row's language to its texts.

    Raises:
        ConfigError: a profile is not for a language of the rows.
    """
    steps = {language: options.normaliser(language, spelling) for language in {row.language for row in rows}}
    systems = list(rows[0].heard) if rows else []
    return Texts(
        [steps[row.language](without_tags(row.text)) for row in rows],
        {system: [steps[row.language](row.heard[system]) for row in rows] for system in systems},
    )


def marked_references(rows: Sequence[Row], options: TextOptions) -> list[tuple[list[str], list[bool]]]:
    """Tokens of every reference after its text profile, and which of them are tagged as of interest."""
    steps = {language: options.normaliser(language) for language in {row.language for row in rows}}
    return [tagged_tokens(row.text, mixed_tokens, steps[row.language]) for row in rows]


def drop_empty(rows: Sequence[Row], options: TextOptions, problems: Problems) -> list[Row]:
    """Rows whose references still have words after their text profile; the others are noted."""
    steps = {language: options.normaliser(language) for language in {row.language for row in rows}}
    kept = []
    for row in rows:
        if steps[row.language](without_tags(row.text)):
            kept.append(row)
        else:
            message = f"the reference of {row.id} has no words after its text profile"
            problems.add("empty reference", *row.where, message)
    return kept
