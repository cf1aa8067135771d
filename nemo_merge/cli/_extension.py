"""Options that ``extend``, ``forget`` and ``pack`` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_PATH = click.Path(path_type=Path)
_FOLDER = click.Path(path_type=Path, file_okay=False)


def options(*decorators: Decorator) -> Decorator:
    """Several options in one decorator, in the order of the help."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


output = click.option(
    "-o", "--output", required=True, type=_PATH, help="The new model; it appears whole or not at all."
)
change = options(
    click.option("--scale", type=float, help="Scale of the merged task vector; by default as before."),
    click.option(
        "--how",
        default="auto",
        metavar="WORD",
        help="merge all experts again, update by this one, or auto, which takes what is exact.  [auto]",
    ),
    click.option("--base", type=_PATH, help="The base, if it is not where it was."),
    click.option(
        "--inputs",
        multiple=True,
        type=_FOLDER,
        help="Folder in which earlier experts are looked for by their names; may be given several times.",
    ),
)
work = options(
    click.option("--overwrite", is_flag=True, help="Replace an output that exists."),
    click.option("--workers", type=int, help="Threads; the number of cores by default."),
)
packing = options(
    click.option("--rank", type=int, help="Singular triplets of every matrix that a pack keeps."),
    click.option("--rank-fraction", type=float, help="The same as a share of the shorter side.  [0.01]"),
    click.option("--energy", type=float, help="The same as the share of the squared norm that they must hold."),
    click.option("--keep", type=float, help="Share of the remaining entries kept; 1 loses nothing.  [0.2]"),
    click.option("--dtype", help="Type in which they are kept: bfloat16, float16 or float32.  [bfloat16]"),
)


def given(**values: Any) -> dict[str, Any]:
    """The options that were given; the others keep the defaults of the function."""
    return {key: value for key, value in values.items() if value is not None}
