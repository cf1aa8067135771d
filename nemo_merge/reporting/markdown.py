"""Tables in Markdown, and what stands in their cells."""

from __future__ import annotations

import math
from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are written as they are."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(value: float, digits: int = 0) -> str:
    """A share as ``12 %``; empty for NaN."""
    return "" if math.isnan(value) else f"{100 * value:.{digits}f} %"


def rate(value: Sequence[float]) -> str:
    """A rate and the ends of its interval in per cent: ``12.0 [11.0, 13.0]``."""
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * item for item in value))


def signed(value: Sequence[float]) -> str:
    """A difference of rates and the ends of its interval in points: ``+2.0 [+1.0, +3.0]``; empty for NaN."""
    return "" if math.isnan(value[0]) else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * item for item in value))


def p_value(value: float) -> str:
    """A p value, with the smallest ones as a bound."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
