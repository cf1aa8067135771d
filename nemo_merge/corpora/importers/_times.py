"""Times of transcripts, whatever stands there, and ids made of them."""

from __future__ import annotations

import math

_LONGEST = 1e7  # seconds, 115 days: more is a typing error


def seconds(value: str | float, per_second: float = 1.0) -> float:
    """A time in seconds.

    Args:
        value: a number, or how it is written.
        per_second: units in a second.

    Raises:
        ValueError: it is no number, or none that can be a time.
    """
    try:
        time = float(value) / per_second
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{value!r} is not a time") from error
    if not (math.isfinite(time) and abs(time) < _LONGEST):
        raise ValueError(f"{time:g} s is not a time")
    return time


def stamp(time: float) -> str:
    """A time as part of an id: milliseconds in eight digits.

    Example:
        >>> stamp(1.2345)
        '00001234'
    """
    return f"{round(time * 1000):08d}"
