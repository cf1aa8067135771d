"""Search over methods and their parameters by the error rates of what they merge, with Optuna."""

from __future__ import annotations

from .._lazy import attach

_HOMES = {"SearchJob": "job", "SearchReport": "study", "Space": "space", "search": "study"}

__all__ = list(_HOMES)

__getattr__, __dir__ = attach(__name__, _HOMES)
