"""What NeMo and Lightning see of this package.

Nothing heavy is imported here; the names below are loaded when they are used first.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint_merge_callback import CheckpointMergeCallback as CheckpointMergeCallback
    from .continual_merge_callback import ContinualMergeCallback as ContinualMergeCallback
    from .merge_callback import MergeCallback as MergeCallback

_HOMES = {
    "CheckpointMergeCallback": "checkpoint_merge_callback",
    "ContinualMergeCallback": "continual_merge_callback",
    "MergeCallback": "merge_callback",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
