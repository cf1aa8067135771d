"""Planning and carrying out merges."""

from __future__ import annotations

from .api import MergeReport, merge, merge_state_dicts
from .engine import execute
from .plan import MergePlan, Row, Treatment, plan_merge, plan_table

__all__ = [
    "MergePlan",
    "MergeReport",
    "Row",
    "Treatment",
    "execute",
    "merge",
    "merge_state_dicts",
    "plan_merge",
    "plan_table",
]
