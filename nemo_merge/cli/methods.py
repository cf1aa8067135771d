"""``nemo-merge methods``: lists the merging methods, or explains one."""

from __future__ import annotations

import inspect as python_inspect

import click


@click.command("methods")
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List the merging methods, or explain one by NAME."""
    from rich.table import Table
    from rich.text import Text

    from .. import methods
    from ._console import console

    out = console()
    if name is None:
        table = Table("method", "family", "parameters (default)", "source", box=None, pad_edge=False)
        for known in methods.names():
            cls = methods.method_class(known)
            own = [item for item in methods.parameters(cls) if item.name not in ("scale", "weights")]
            table.add_row(
                known, cls.family, ", ".join(f"{item.name} ({_shown(item.default)})" for item in own), cls.source
            )
        out.print(table)
        out.print("Every method has scale (lambda) and weights (one per expert). Details: nemo-merge methods NAME")
        return
    cls = methods.method_class(name)
    out.print(Text(f"{name} ({cls.family})", style="bold"))
    out.print(Text(python_inspect.cleandoc(cls.__doc__ or "")))
    table = Table("parameter", "default", "range", "meaning", box=None, pad_edge=False)
    for item in methods.parameters(cls):
        default = f"{cls().default_scale(2):g} (2 experts)" if item.name == "scale" else _shown(item.default)
        table.add_row(item.name, default, item.range, item.description)
    out.print()
    out.print(table)
    out.print(f"\nsource: {cls.source}")
    out.print(
        Text(f"try:    nemo-merge merge method={name} base=base.nemo 'experts=[a.nemo,b.nemo]' output=merged.nemo")
    )


def _shown(value: object) -> str:
    return "auto" if value is None else str(value)
