"""One sentence about the experts, with its figures and what it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

RULE_OF_THUMB = "rule of thumb"
_LISTED = 5  # names in a sentence; the rest is counted


@dataclass(frozen=True)
class Finding:
    """One sentence about the experts.

    Attributes:
        kind: what it is about; the same kind always comes from the same test.
        level: ``warning`` for what may spoil a merge, ``note`` for what helps to choose.
        text: the sentence, with its figures.
        basis: what the threshold or the advice rests on.
        values: the figures.
    """

    kind: str
    level: Literal["warning", "note"]
    text: str
    basis: str
    values: Mapping[str, Any] = field(default_factory=dict)


def listed(names: Sequence[str]) -> str:
    """Names with commas between them, the first few."""
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
