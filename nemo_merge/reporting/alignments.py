"""Aligned utterances in colour, the worst first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..scoring.alignment import align
from ..scoring.evaluation import Evaluation
from ..scoring.tokens import characters, mixed_tokens, words

if TYPE_CHECKING:
    from rich.text import Text

_TOKENS: dict[str, Callable[[str], list[str]]] = {"cer": characters, "mixed": mixed_tokens}
_STYLES = {" ": "", "S": "bold yellow", "D": "bold red", "I": "bold cyan"}
_GAP = "*"


def worst_alignments(evaluation: Evaluation, limit: int) -> Iterator[Text]:
    """The utterances with most errors of every system, as reference, hypothesis and edits below each other.

    Args:
        evaluation: with an error rate as its first metric; words are shown for PIER, BLEU and chrF.
        limit: utterances per system.
    """
    from rich.cells import cell_len
    from rich.text import Text

    metric = evaluation.options.metrics[0]
    tokens = _TOKENS.get(metric, words)
    for system in evaluation.systems:
        heard = evaluation.texts.hypotheses[system]
        pairs = [(tokens(r), tokens(h)) for r, h in zip(evaluation.texts.references, heard, strict=True)]
        steps = [align(said, recognised, evaluation.options.costs) for said, recognised in pairs]
        wrong = [
            sum(a is None or b is None or said[a] != recognised[b] for a, b in path)
            for (said, recognised), path in zip(pairs, steps, strict=True)
        ]
        order = sorted(range(len(wrong)), key=wrong.__getitem__, reverse=True)
        for index in order[:limit]:
            if not wrong[index]:
                break
            said, recognised = pairs[index]
            row = evaluation.rows[index]
            yield Text(f"{system}  {row.id}  {wrong[index]} error{'s' if wrong[index] > 1 else ''}", style="bold")
            lines = [Text("REF "), Text("HYP "), Text("    ")]
            for left, right in steps[index]:
                top = _GAP if left is None else said[left]
                bottom = _GAP if right is None else recognised[right]
                edit = "I" if left is None else "D" if right is None else " " if top == bottom else "S"
                width = max(cell_len(top), cell_len(bottom))
                for line, word in zip(lines, (top, bottom, edit), strict=True):
                    line.append(word + " " * (width - cell_len(word) + 1), style=_STYLES[edit])
            yield from lines
