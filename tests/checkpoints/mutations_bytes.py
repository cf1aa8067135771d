"""Damages bytes of which nothing is known; see :mod:`tests.checkpoints.mutations`."""

from __future__ import annotations

import random
import re

EXTREMES = (
    0, 1, 2, 7, 127, 128, 255, 256, 4095, 65535, 1 << 20, (1 << 24) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32,
    1 << 40, (1 << 53) + 1, (1 << 62) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -1, -2, -(1 << 31), -(1 << 63),
)  # fmt: skip


def change_bytes(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """A change that knows nothing of the format."""
    size = len(data)
    at = _place(rng, data)
    kind = rng.randrange(10)
    if kind == 0 and size:  # one bit
        at %= size
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + rng.randbytes(rng.choice((1, 4, 16, 600))) + data[at:]
    if kind == 3:
        return data[:at] + data[at + rng.choice((1, 2, 8, 512)) :]
    if kind == 4:  # a block stands elsewhere as well
        start, length = rng.randrange(size + 1), rng.choice((4, 30, 512))
        return data[:at] + data[start : start + length] + data[at + length * rng.randrange(2) :]
    if kind == 5 and others:  # the end is another file's
        other = rng.choice(others)
        return data[:at] + other[rng.choice((at, rng.randrange(len(other) + 1))) :]
    if kind == 6:  # a number in decimal or octal digits
        found = list(re.finditer(rb"\d+", data[:100_000]))
        if found:
            span = rng.choice(found)
            number = b"%d" % rng.choice(EXTREMES) if rng.randrange(2) else b"7" * len(span[0])
            return data[: span.start()] + number + data[span.end() :]
    if kind == 7:
        return data[:at] + bytes([rng.choice((0, 255, 0x80, 0x2E, 0x28))]) * rng.choice((1, 8, 64)) + data[at + 8 :]
    return data[:at] + integer(rng) + data[at + rng.choice((1, 2, 4, 8)) :]


def _place(rng: random.Random, data: bytes) -> int:
    """Anywhere, but rather near the beginning, the end, or a signature."""
    where = rng.randrange(4)
    if where == 0:
        return min(len(data), rng.randrange(64))
    if where == 1:
        return max(0, len(data) - rng.randrange(160))
    if where == 2 and (
        found := [match.start() for match in re.finditer(rb"PK\x01\x02|PK\x05\x06|PK\x06.|ustar", data)]
    ):
        return min(len(data), rng.choice(found) + rng.randrange(48))
    return rng.randrange(len(data) + 1)


def integer(rng: random.Random) -> bytes:
    width = rng.choice((1, 2, 4, 8))
    return (rng.choice(EXTREMES) % (1 << 8 * width)).to_bytes(width, rng.choice(("little", "big")))
