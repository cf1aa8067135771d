"""The plan of a merge as a table for the terminal."""

from __future__ import annotations

import dataclasses
from typing import Any

from .plan import MergePlan, Row, Treatment


def plan_table(plan: MergePlan) -> Any:
    """The plan as a table for the terminal (:class:`rich.table.Table`)."""
    from rich.table import Table

    table = Table("tensor", "shape", "type", "role", "treatment", "method", "reason", box=None, pad_edge=False)
    for row in plan.rows:
        shape = "x".join(map(str, row.spec.shape)) or "scalar"
        dtype = str(row.spec.dtype).removeprefix("torch.")
        table.add_row(row.name, shape, dtype, row.role.value, row.treatment.value, _settings(plan, row), row.reason)
    for alias, owner in plan.ties.items():
        table.add_row(alias, "", "", "", "tied", "", f"shares the data of {owner}")
    return table


def _settings(plan: MergePlan, row: Row) -> str:
    """The method of a row, with the settings that are not its defaults."""
    if row.treatment not in (Treatment.METHOD, Treatment.MEAN):
        return ""
    changed = [
        f"{item.name}={getattr(row.method, item.name)}"
        for item in dataclasses.fields(row.method)
        if getattr(row.method, item.name) != item.default
    ]
    return " ".join([row.method.name, *changed])
