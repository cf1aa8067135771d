"""Planning and carrying out merges."""

from __future__ import annotations

from .api import MergeReport, merge, merge_state_dicts
from .emr import apply_emr
from .engine import execute
from .extension import ExtensionReport, extend, forget
from .grid import sweep
from .pack_experts import pack_experts
from .packs import PackReport, pack
from .plan import MergePlan, Row, Treatment, plan_merge
from .rules import Rule, parse_rules
from .table import plan_table

__all__ = [
    "ExtensionReport",
    "MergePlan",
    "MergeReport",
    "PackReport",
    "Row",
    "Rule",
    "Treatment",
    "apply_emr",
    "execute",
    "extend",
    "forget",
    "merge",
    "merge_state_dicts",
    "pack",
    "pack_experts",
    "parse_rules",
    "plan_merge",
    "plan_table",
    "sweep",
]
