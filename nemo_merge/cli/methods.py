"""``nemo-merge methods``: lists the merging methods, or explains one."""

from __future__ import annotations

import inspect as python_inspect
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..methods import Parameter


@click.command("methods")
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List the merging methods and post-processors, or explain one by NAME."""
    from rich.table import Table
    from rich.text import Text

    from .. import methods
    from ._console import console

    out = console()
    if name is None:
        table = Table("method", "family", "parameters (default; range)", "source", box=None, pad_edge=False)
        classes = [methods.method_class(known) for known in methods.names()]
        for known in sorted(classes, key=lambda item: (_FAMILIES.get(item.family, 9), item.name)):
            table.add_row(known.name, known.family, _summary(methods.parameters(known)), known.source)
        for chained in map(methods.post_class, methods.post_names()):
            table.add_row(chained.name, chained.family, _summary(methods.parameters(chained)), chained.source)
        out.print(table)
        out.print(
            "Every method has scale (lambda) and weights (one per expert); methods of task subspaces have "
            "conv_as_matrix. Details: nemo-merge methods NAME"
        )
        return
    post = name in methods.post_names()
    cls: Any = methods.post_class(name) if post else methods.method_class(name)
    out.print(Text(f"{name} ({cls.family})", style="bold"))
    out.print(Text(python_inspect.cleandoc(cls.__doc__ or "")))
    table = Table("parameter", "default", "range", "meaning", box=None, pad_edge=False)
    for item in methods.parameters(cls):
        default = f"{cls().default_scale(2):g} (2 experts)" if item.name == "scale" else _shown(item.default)
        table.add_row(item.name, default, item.range, item.description)
    out.print()
    out.print(table)
    out.print(f"\nsource: {cls.source}")
    settings = f"method=task_arithmetic then=[{name}]" if post else f"method={name}"
    out.print(Text(f"try:    nemo-merge merge {settings} base=base.nemo 'experts=[a.nemo,b.nemo]' output=merged.nemo"))


_FAMILIES = {"parameter space": 0, "task vectors": 1, "task subspace": 2}
_COMMON = ("scale", "weights", "conv_as_matrix")


def _summary(items: list[Parameter]) -> str:
    """Parameters with default and range in one line."""
    own = [item for item in items if item.name not in _COMMON]
    return ", ".join(f"{item.name} ({'; '.join(filter(None, [_shown(item.default), item.range]))})" for item in own)


def _shown(value: object) -> str:
    return "auto" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
