"""Rows of transcripts after the text profiles of their languages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .points_of_interest import tagged_tokens, without_tags
from .text import check_profile, normaliser
from .tokens import mixed_tokens
from .transcripts import Problems, Row


@dataclass(frozen=True)
class TextOptions:
    """What is done to texts before they are compared.

    Attributes:
        profile: name of the text profile.
        profiles: other profiles by language, ``pt-PT`` before ``pt``.
        casing, punctuation: see :func:`~nemo_merge.scoring.text.normaliser`.
    """

    profile: str = "whisper_basic"
    profiles: Mapping[str, str] = field(default_factory=dict)
    casing: str = "lower"
    punctuation: str = "remove"

    def __post_init__(self) -> None:
        for name in (self.profile, *self.profiles.values()):
            check_profile(name)

    def normaliser(self, language: str | None, spelling: str | None = None) -> Callable[[str], str]:
        """The function for texts of a language.

        Raises:
            ConfigError: the profile is not for that language.
        """
        primary = language.replace("_", "-").partition("-")[0] if language else ""
        profile = self.profiles.get(language or "", self.profiles.get(primary, self.profile))
        return normaliser(profile, language, casing=self.casing, punctuation=self.punctuation, spelling=spelling)


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
