"""What a cut is of: domain, speaker, language or whatever else its supervisions say."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from ..errors import CorpusError


def label_of(cut: Any, label: Any) -> Hashable:
    """The class of a cut.

    Args:
        cut: Lhotse's.
        label: ``language``, ``speaker``, ``gender`` or ``text`` of its supervisions, another name for a custom field of
            its supervisions or of itself, or a function of a cut.

    Raises:
        CorpusError: there is none, or its supervisions say several.
    """
    if callable(label):
        found = {label(cut)}
    else:
        found = {
            getattr(item, label)
            if label in ("language", "speaker", "gender", "text")
            else (item.custom or {}).get(label)
            for item in cut.supervisions
        }
        if found <= {None}:
            found = {(getattr(cut, "custom", None) or {}).get(label)}
    if len(found) != 1 or found <= {None, ""}:
        what = "several labels" if len(found) > 1 else "no label"
        name = label if isinstance(label, str) else getattr(label, "__name__", "label")
        raise CorpusError(
            f"cut {cut.id}: {what} {name!r}; label= names a field of the supervisions, a custom field of supervisions "
            "or cuts, or is a function of a cut"
        )
    return found.pop()
