"""Aligned utterances, the worst first, and the same in colour for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..scoring.alignment import align
from ..scoring.evaluation import TOKENS, Evaluation
from ..scoring.tokens import words
from ..scoring.transcripts import Row

if TYPE_CHECKING:
    from rich.text import Text

_STYLES = {" ": "", "S": "bold yellow", "D": "bold red", "I": "bold cyan"}
_GAP = "*"


class Step(NamedTuple):
    """One place of an alignment: a token that was said, one that was heard, or both, and which error that is."""

    said: str | None
    heard: str | None
    edit: Literal[" ", "S", "D", "I"]


@dataclass(frozen=True)
class Aligned:
    """What a system heard in an utterance.

    Attributes:
        index: of the row in the evaluation.
        row: the utterance.
        errors: number of edits.
        steps: tokens after the text profile, side by side.
    """

    index: int
    row: Row
    errors: int
    steps: tuple[Step, ...]


def worst_utterances(evaluation: Evaluation, system: str, limit: int) -> list[Aligned]:
    """The utterances with most errors of a system, short ones first where they are as many; none without errors.

    Args:
        evaluation: with an error rate as its first metric; words are shown for PIER, BLEU and chrF.
        system: one of its systems.
        limit: number of utterances.
    """
    tokens = TOKENS.get(evaluation.options.metrics[0], words)
    texts = evaluation.texts
    found = []
    for index, (reference, hypothesis) in enumerate(zip(texts.references, texts.hypotheses[system], strict=True)):
        said, heard = tokens(reference), tokens(hypothesis)
        steps = tuple(
            _step(None if a is None else said[a], None if b is None else heard[b])
            for a, b in align(said, heard, evaluation.options.costs)
        )
        if errors := sum(step.edit != " " for step in steps):
            found.append(Aligned(index, evaluation.rows[index], errors, steps))
    return sorted(found, key=lambda item: (-item.errors, len(item.steps)))[:limit]


def worst_alignments(evaluation: Evaluation, limit: int) -> Iterator[Text]:
    """The worst utterances of every system, as reference, hypothesis and edits below each other.

    Args:
        evaluation: see :func:`worst_utterances`.
        limit: utterances per system.
    """
    from rich.cells import cell_len
    from rich.text import Text

    for system in evaluation.systems:
        for found in worst_utterances(evaluation, system, limit):
            errors = f"{found.errors} error{'s' if found.errors > 1 else ''}"
            yield Text(f"{system}  {found.row.id}  {errors}", style="bold")
            lines = [Text("REF "), Text("HYP "), Text("    ")]
            for said, heard, edit in found.steps:
                top, bottom = said or _GAP, heard or _GAP
                width = max(cell_len(top), cell_len(bottom))
                for line, word in zip(lines, (top, bottom, edit), strict=True):
                    line.append(word + " " * (width - cell_len(word) + 1), style=_STYLES[edit])
            yield from lines


def _step(said: str | None, heard: str | None) -> Step:
    return Step(said, heard, "I" if said is None else "D" if heard is None else " " if said == heard else "S")
