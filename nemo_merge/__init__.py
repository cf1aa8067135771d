"""Merging speech-recognition models: several experts in, one model out, without retraining.

Nothing heavy is imported here; the names below are loaded when they are used first.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import methods as methods
    from .checkpoints import open_checkpoint as open_checkpoint
    from .errors import NemoMergeError as NemoMergeError
    from .hooks import register as register
    from .hooks import unregister as unregister
    from .merging import MergeReport as MergeReport
    from .merging import merge as merge
    from .merging import merge_state_dicts as merge_state_dicts
    from .merging import plan_merge as plan_merge
    from .merging import sweep as sweep
    from .reporting.analysis import AnalysisReport as AnalysisReport
    from .reporting.analysis import analyze as analyze

_HOMES = {
    "AnalysisReport": "reporting.analysis",
    "MergeReport": "merging",
    "NemoMergeError": "errors",
    "analyze": "reporting.analysis",
    "merge": "merging",
    "merge_state_dicts": "merging",
    "methods": None,
    "open_checkpoint": "checkpoints",
    "plan_merge": "merging",
    "register": "hooks",
    "sweep": "merging",
    "unregister": "hooks",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    if home is None:
        return importlib.import_module(f".{name}", __name__)
    return getattr(importlib.import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
