"""The section of a report on words by their language: how mixed a test set is, and what is misheard of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .markdown import percent, rate, table

_COLUMNS = {
    "embedded": "{others} words (PIER)",
    "matrix": "{matrix} words",
    "entry": "first words after a switch",
}


def switching_section(
    scores: Mapping[str, Any], rows: Sequence[tuple[str, Mapping[str, Any]]], title: str
) -> list[str]:
    """Parts of ``RESULTS.md``; none where all words of the test set are in one language.

    Args:
        scores: what the scoring stage wrote.
        rows: base and settings to show, with their labels.
        title: of the test set.
    """
    found, kinds = scores["switching"], list(scores["base"]["words"])
    if not kinds:
        return []
    matrix, words = found["matrix"], found["words"]
    others = ", ".join(language for language in words if language != matrix)
    header = [_COLUMNS[kind].format(matrix=matrix, others=others) for kind in kinds]
    counted = ", ".join(f"{percent(number / sum(words.values()))} {language}" for language, number in words.items())
    return [
        "## Words by language",
        "<!-- --8<-- [start:switching] -->",
        table(["method", *header], [[label, *(rate(row["words"][kind]) for kind in kinds)] for label, row in rows]),
        "<!-- --8<-- [end:switching] -->",
        (
            f"Error rates in per cent at words of the test set *{title}*, by their language; an insertion counts at "
            "the word after it. PIER, the point-of-interest error rate (arXiv 2501.09512), counts words in another "
            f"language than most. Of the set's {found['utterances']} utterances {found['switched']} are switched; its "
            f"words: {counted}. Its code-mixing index is {found['code_mixing_index']:.1f}: the mean over utterances of "
            "100 (1 - w / n), with w of n words in the utterance's most frequent language. Its switch point fraction "
            f"(switches per word) is {found['switch_point_fraction']:.2f}."
        ),
    ]
