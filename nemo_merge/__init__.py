"""Merging speech-recognition models: several experts in, one model out, without retraining.

Nothing heavy is imported here; the names below are loaded when they are used first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._lazy import attach

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import methods as methods
    from .checkpoints import open_checkpoint as open_checkpoint
    from .errors import NemoMergeError as NemoMergeError
    from .hooks import register as register
    from .hooks import unregister as unregister
    from .merging import ExtensionReport as ExtensionReport
    from .merging import MergeReport as MergeReport
    from .merging import PackReport as PackReport
    from .merging import extend as extend
    from .merging import forget as forget
    from .merging import merge as merge
    from .merging import merge_state_dicts as merge_state_dicts
    from .merging import pack as pack
    from .merging import plan_merge as plan_merge
    from .merging import sweep as sweep
    from .reporting.analysis import AnalysisReport as AnalysisReport
    from .reporting.analysis import analyze as analyze

_HOMES = {
    "AnalysisReport": "reporting.analysis",
    "ExtensionReport": "merging",
    "MergeReport": "merging",
    "NemoMergeError": "errors",
    "PackReport": "merging",
    "analyze": "reporting.analysis",
    "extend": "merging",
    "forget": "merging",
    "merge": "merging",
    "merge_state_dicts": "merging",
    "methods": None,
    "open_checkpoint": "checkpoints",
    "pack": "merging",
    "plan_merge": "merging",
    "register": "hooks",
    "sweep": "merging",
    "unregister": "hooks",
}

__all__ = ["__version__", *_HOMES]

__getattr__, __dir__ = attach(__name__, _HOMES)
