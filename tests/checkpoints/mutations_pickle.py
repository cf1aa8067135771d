"""Damages pickles instruction by instruction; see :mod:`tests.checkpoints.mutations`."""

from __future__ import annotations

import functools
import pickle
import pickletools
import random
import struct
from itertools import pairwise

from .mutations_bytes import EXTREMES, change_bytes

_DEPTH = (1, 60, 130, 1500, 30_000)


@functools.lru_cache(256)
def _instructions(data: bytes) -> tuple[bytes, ...]:
    places: list[int] = []
    try:
        for _, _, place in pickletools.genops(data):
            places.append(place or 0)
    except Exception:
        places.append(len(data))
    return tuple(data[a:b] for a, b in pairwise((*places, len(data))))


def change_pickle(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Instructions of a pickle left out, doubled, exchanged, put in, or with other arguments."""
    parts = list(_instructions(data))
    if len(parts) < 3:
        return change_bytes(rng, data, others)
    at = rng.randrange(len(parts))
    kind = rng.randrange(8)
    if kind == 0:
        del parts[at : at + rng.choice((1, 1, 2, 5))]
    elif kind == 1:
        parts[at:at] = parts[at : at + rng.choice((1, 3, 10))] * rng.choice((1, 1, 100))
    elif kind == 2:
        other = rng.randrange(len(parts))
        parts[at], parts[other] = parts[other], parts[at]
    elif kind == 3:
        names = [index for index, part in enumerate(parts) if part[:1] in (pickle.GLOBAL, pickle.BINUNICODE)]
        at = rng.choice(names or [at])
        parts[at] = _value(rng)
    elif kind == 4:
        numbers = [i for i, part in enumerate(parts) if part[:1] in (pickle.BININT, pickle.BININT1, pickle.BININT2)]
        at = rng.choice(numbers or [at])
        parts[at] = _number(rng)
    elif kind == 5:
        parts[at] = parts[at][:1] + rng.randbytes(max(0, len(parts[at]) - 1))
    elif kind == 6:
        parts[at] = bytes([rng.randrange(256)]) + parts[at][1:]
    else:
        parts.insert(at, _value(rng))
    return b"".join(parts)


def _number(rng: random.Random) -> bytes:
    value = rng.choice(EXTREMES)
    return rng.choice((
        pickle.BININT + (value % (1 << 32)).to_bytes(4, "little"),
        pickle.LONG1 + b"\x09" + value.to_bytes(9, "little", signed=True),
        pickle.LONG4 + (value % (1 << 32)).to_bytes(4, "little"),
        pickle.INT + b"%d\n" % value,
        pickle.INT + b"9" * rng.choice((10, 3000, 5000)) + b"\n",
        pickle.BINFLOAT + struct.pack(">d", rng.choice((float("nan"), float("inf"), 1e300, -0.0))),
        pickle.NEWTRUE,
        pickle.NONE,
    ))  # fmt: skip


def _value(rng: random.Random) -> bytes:
    """Instructions that push something odd."""
    depth = rng.choice(_DEPTH)
    slot = bytes([rng.randrange(20)])
    return rng.choice((
        pickle.GLOBAL + rng.choice(CALLS),
        pickle.GLOBAL + rng.choice(CALLS) + pickle.EMPTY_TUPLE + pickle.REDUCE,
        pickle.GLOBAL + rng.choice(CALLS) + b"X\x02\x00\x00\x00id\x85R",
        pickle.GLOBAL + rng.choice(CALLS) + pickle.EMPTY_TUPLE + pickle.NEWOBJ,
        pickle.GLOBAL + rng.choice(CALLS) + b")}" + pickle.NEWOBJ_EX,
        pickle.MARK + pickle.INST + rng.choice(CALLS),
        pickle.MARK + pickle.GLOBAL + rng.choice(CALLS) + pickle.OBJ,
        pickle.EMPTY_DICT + pickle.BUILD,
        pickle.EMPTY_LIST * depth + pickle.APPEND * (depth - 1),
        pickle.NONE + pickle.TUPLE1 * depth,
        pickle.EMPTY_DICT + (pickle.MEMOIZE + b"NhZs").replace(b"Z", slot),
        pickle.BINGET + slot,
        pickle.BINGET + slot + pickle.BINPERSID,
        pickle.BINGET + slot + pickle.APPEND,
        pickle.BINGET + slot + pickle.BINGET + slot + pickle.SETITEM,
        pickle.BINPUT + slot,
        pickle.LONG_BINPUT + b"\xff\xff\xff\x7f",
        pickle.LONG_BINGET + b"\xff\xff\xff\x7f",
        b"]" + b"(h\x00h\x00e" * 10 + pickle.MEMOIZE,
        b"(l" + b"p0\n(g0\ng0\nl" * 40,
        pickle.UNICODE + b"x" * rng.choice((1, 1000, 100_000)) + b"\n",
        pickle.BINUNICODE8 + b"\xff" * 8,
        pickle.BINBYTES8 + b"\xff\xff\xff\xff\x00\x00\x00\x00",
        pickle.BYTEARRAY8 + b"\xff\xff\xff\x3f\x00\x00\x00\x00",
        pickle.FRAME + struct.pack("<Q", rng.choice((0, 5, 1 << 40, (1 << 64) - 1))),
        pickle.PROTO + bytes([rng.choice((0, 5, 6, 255))]),
        pickle.EXT1 + b"\x01",
        pickle.NEXT_BUFFER,
        pickle.PERSID + b"storage\n",
        pickle.POP,
        pickle.POP_MARK,
        pickle.MARK,
        pickle.DUP,
        pickle.STOP,
        pickle.EMPTY_SET + pickle.MARK + pickle.NONE + pickle.ADDITEMS,
        pickle.MARK + pickle.EMPTY_LIST + pickle.FROZENSET,
        _number(rng),
    ))  # fmt: skip


CALLS = (
    b"os\nsystem\n", b"builtins\neval\n", b"builtins\n__import__\n", b"torch\nload\n", b"collections\nOrderedDict\n",
    b"torch\nFloatStorage\n", b"torch\nComplexDoubleStorage\n", b"torch._utils\n_rebuild_tensor_v2\n",
    b"torch._utils\n_rebuild_tensor_v3\n", b"torch._utils\n_rebuild_parameter\n", b"torch\nSize\n", b"torch\nint8\n",
    b"torch\nbool\n", b"torch.storage\nUntypedStorage\n", b"omegaconf.dictconfig\nDictConfig\n", b"\xff\n\xfe\n", b"\n\n",
    b"pathlib\nPosixPath\n", b"a\x1b[2Jb\nc d\n", b"__main__\n" + b"x" * 1000 + b"\n",
)  # fmt: skip
