"""Numbers of rows as text, consecutive ones as ranges."""

from __future__ import annotations

from collections.abc import Sequence


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, consecutive ones as first and last.

    Example:
        >>> ranges([4, 5, 6, 9])
        '4-6,9'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def numbers_of(text: str) -> list[int]:
    """The numbers that :func:`ranges` wrote.

    Example:
        >>> numbers_of("4-6,9")
        [4, 5, 6, 9]

    Raises:
        ValueError: it is something else.
    """
    pairs = [part.partition("-") for part in text.split(",") if part]
    return [number for first, _, last in pairs for number in range(int(first), int(last or first) + 1)]
