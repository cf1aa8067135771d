"""Damages JSON, YAML and the headers of safetensors; see :mod:`tests.checkpoints.mutations`."""

from __future__ import annotations

import json
import random
from typing import Any

from .mutations_bytes import EXTREMES, change_bytes, integer


def change_safetensors(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Another header, its length right; or another length."""
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length]
    if not 2 <= len(header) == length or rng.random() < 0.2:
        return integer(rng).ljust(8, b"\0") + data[8:]
    text = change_json(rng, header, others)
    if rng.random() < 0.7:
        text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def change_json(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """A value, a key or a whole part replaced."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return change_bytes(rng, data, others)
    if rng.random() < 0.15:
        return change_bytes(rng, data, others)
    places: list[tuple[Any, Any]] = []
    waiting: list[Any] = [content]
    while waiting and len(places) < 1000:
        node = waiting.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            places.append((node, key))
            waiting.append(value)
    if not places:
        return rng.choice(ODD_JSON)
    node, key = rng.choice(places)
    kind = rng.randrange(6)
    mark = "\0odd\0"
    if kind == 0:
        del node[key]
    elif kind == 1:
        node[key] = rng.choice(
            (None, *EXTREMES, True, 0.5, "", "x", "../x", "/etc/passwd", "F64", "F4", "model.safetensors")
        )
    elif kind == 2 and isinstance(node, dict):
        node[rng.choice(("", "\ud800", "__metadata__", "x" * 1000, "\x1b[2J", key + "2"))] = node[key]
    elif kind == 3:
        other, name = rng.choice(places)
        node[key] = json.loads(json.dumps(other[name])) if name in other or isinstance(other, list) else None
    else:
        node[key] = mark
    try:
        text = json.dumps(content).encode()
    except (RecursionError, ValueError):  # an earlier change nested it deeply, or tied a knot
        return change_bytes(rng, data, others)
    return text.replace(json.dumps(mark).encode(), rng.choice(ODD_JSON))


ODD_JSON = (
    b"[" * 100_000, b"[" * 900 + b"]" * 900, b'{"a":' * 3000 + b"1" + b"}" * 3000, b"1e999", b"NaN", b"-0", b"1" * 5000,
    b"[0,0]", b"[1,0]", b'"\xff"', b'"\\ud800"', b'{"a":1,"a":2}', b"null", b"{}", b"[[]]", b'"' + b"x" * 100_000 + b'"',
    b"[18446744073709551615,1]", b"[4611686018427387904,4]", b"[-1,4]", b'{"dtype":"F32","shape":[],"data_offsets":[0,0]}',
)  # fmt: skip


def change_yaml(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """A line replaced, doubled, indented otherwise or put in."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0:
        return change_bytes(rng, data, others)
    if kind == 1:
        lines.insert(at, lines[at])
    elif kind == 2:
        lines[at] = b" " * rng.randrange(5) + lines[at]
    elif kind == 3:
        lines[at] = lines[at].partition(b":")[0] + b": " + rng.choice(ODD_YAML)
    elif kind == 4:
        del lines[at]
    else:
        lines.insert(at, rng.choice(ODD_YAML))
    return b"\n".join(lines)


ODD_YAML = (
    b"!!python/object/apply:os.system [id]", b"!!python/name:os.system", b"&a [*a]", b"&a {k: *a}", b"*a", b"<<: *a",
    b"? {a: b}\n: c", b"? [a, b]\n: c", b"[" * 300 + b"]" * 300, b"[" * 20_000, b"{a: " * 2000, b"9" * 5000, b"0x" + b"f" * 9000,
    b"2024-13-45", b"2024-05-01T99:99:99Z", b"2024-05-01", b"!!binary 'x'", b"!!binary aGFsbG8=", b"!!int x", b"!!float x",
    b"!!set {a, b}", b"!!omap [a: b]", b"!!timestamp x", b"1:60:60:60", b"nemo:../../etc/passwd", b"nemo:", b".inf", b".nan", b"~",
    b"tokenizer: {model_path: 'nemo:/etc/passwd'}", b"---\na: b", b"%YAML 9.9", b"\x00", b"\xff\xfe", b"\t- a", b"- " * 3000,
    b"&a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c]\n"
    b"e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]", b"'\\", b'"\\ud800"', b"nemo_merge: [1]", b"=", b"labels: x",
)  # fmt: skip
