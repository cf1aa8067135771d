"""Puts utterances of similar length into batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def packed(
    items: Iterable[T], seconds: Callable[[T], float], batch_size: int, batch_seconds: float | None
) -> Iterator[list[T]]:
    """Batches within limits, the longest items first: if memory does not suffice, that shows at once.

    Args:
        items: what to put into batches.
        seconds: length of an item.
        batch_size: items in a batch.
        batch_seconds: seconds in a batch with padding, or None for any number; an item that is longer is alone.

    Example:
        >>> list(packed([1.0, 9.0, 2.0, 8.0], lambda item: item, batch_size=3, batch_seconds=18.0))
        [[9.0, 8.0], [2.0, 1.0]]
    """
    batch: list[T] = []
    for item in sorted(items, key=seconds, reverse=True):
        # Sorted, so the first of a batch is the longest, to which the others are padded.
        padded = (len(batch) + 1) * seconds(batch[0] if batch else item)
        if batch and (len(batch) == batch_size or padded > (batch_seconds or math.inf)):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
