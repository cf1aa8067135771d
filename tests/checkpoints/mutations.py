"""Damages files of every format, knowingly: the parts inside an archive are changed and wrapped up again.

Everything is drawn from the generator that is passed in, so that a number gives the same file again.
"""

from __future__ import annotations

import functools
import gzip
import io
import random
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable

from .mutations_bytes import EXTREMES, change_bytes
from .mutations_pickle import change_pickle
from .mutations_text import change_json, change_safetensors, change_yaml


def mutate(rng: random.Random, name: str, data: bytes, others: list[bytes]) -> bytes:
    """One to three changes.

    Args:
        rng: where all choices come from.
        name: name of the file, which tells in what part of a format it is.
        data: its bytes.
        others: further files, to be spliced in.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        knowing = _knowing(name, data)
        change = change_bytes if knowing is None or rng.random() < 0.3 else knowing
        data = change(rng, data, others)
    return data


def _knowing(name: str, data: bytes) -> Callable[[random.Random, bytes, list[bytes]], bytes] | None:
    """The change that knows the format, by the beginning of the data and the name."""
    if data.startswith(b"PK\x03\x04"):
        return change_zip
    if data.startswith(b"\x1f\x8b"):
        return change_gzip
    if data[257:262] == b"ustar" or (name.endswith(".nemo") and len(data) % 512 == 0):
        return change_tar
    if name.endswith((".pkl", ".metadata")):
        return change_pickle
    if name.endswith(".safetensors"):
        return change_safetensors
    if name.endswith(".json"):
        return change_json
    if name.endswith(".distcp"):
        return change_zips
    return change_yaml if name.endswith(".yaml") else None


@functools.lru_cache(256)
def _unzipped(data: bytes) -> tuple[tuple[str, bytes], ...]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return tuple((info.filename, archive.read(info)) for info in archive.infolist())


def change_zip(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Another pickle in the archive, its checksum right; members missing, double or compressed; or wrong headers."""
    if rng.random() < 0.25:
        return _wrong_headers(rng, data)
    try:
        members = list(_unzipped(data))
    except Exception:
        members = []
    if not members:
        return change_bytes(rng, data, others)
    pickles = [index for index, (name, _) in enumerate(members) if name.endswith("data.pkl")]
    index = pickles[0] if pickles and rng.random() < 0.85 else rng.randrange(len(members))
    name, content = members[index]
    kind = rng.randrange(20)
    if kind == 0:
        del members[index]
    elif kind == 1:
        members.append(rng.choice(members))
    elif kind == 2:
        members.append((rng.choice((f"{name}/x", "../x", "/etc/x", "archive/data/0", "archive/byteorder")), b"z"))
    elif kind == 3:
        members[index] = (rng.choice(("archive/../data.pkl", "data.pkl", "a/b/data.pkl", "\N{SNOWMAN}/x")), content)
    else:
        members[index] = (name, mutate(rng, name, content, others))
    packed = io.BytesIO()
    compression = zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(packed, "w", compression) as archive:
        for member, content in members:
            archive.writestr(zipfile.ZipInfo(member), content, compression)
    return packed.getvalue()


def _wrong_headers(rng: random.Random, data: bytes) -> bytes:
    """A field of a local header, of the table of contents or of its end, with another value."""
    fields = {b"PK\x03\x04": 30, b"PK\x01\x02": 46, b"PK\x05\x06": 22, b"PK\x06\x06": 56, b"PK\x06\x07": 20}
    found = [(match.start(), fields[match[0]]) for match in re.finditer(b"|".join(map(re.escape, fields)), data)]
    if not found:
        return data
    start, length = rng.choice(found)
    at = start + 4 + 2 * rng.randrange((length - 4) // 2)
    width = rng.choice((2, 4, 8))
    other = rng.choice(found)[0]  # the place of another member: two share their data
    value = rng.choice((*EXTREMES, len(data), other, other, len(data) - 1, 8))
    return data[:at] + (value % (1 << 8 * width)).to_bytes(width, "little") + data[at + width :]


def change_zips(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """A file of several archives, one behind the other: one of them changed."""
    starts = [match.start() for match in re.finditer(rb"PK\x03\x04.{26}archive/data\.pkl", data, re.DOTALL)]
    if not starts:
        return change_bytes(rng, data, others)
    index = rng.randrange(len(starts))
    start, end = starts[index], (*starts[1:], len(data))[index]
    return data[:start] + change_zip(rng, data[start:end], others) + data[end:]


def change_gzip(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """A changed tar, packed again, perhaps as several pieces; or changed bytes of the compressed ones."""
    try:
        plain = gzip.decompress(data)
    except Exception:
        plain = b""
    if not plain or rng.random() < 0.3:
        return change_bytes(rng, data, others)
    changed = change_tar(rng, plain, others)
    pieces = [changed[: len(changed) // 2], changed[len(changed) // 2 :]] if rng.random() < 0.1 else [changed]
    return b"".join(gzip.compress(piece, 1, mtime=0) for piece in pieces)


def change_tar(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Another member content, another header (its checksum right), or a member of another kind put in."""
    members: list[tuple[tarfile.TarInfo, bytes]] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for info in tar:
                members.append((info, data[info.offset_data : info.offset_data + info.size]))
    except Exception:
        members = []
    kind = rng.randrange(6)
    if not members or kind == 0:
        return change_bytes(rng, data, others)
    at = rng.randrange(len(members))
    info, content = members[at]
    if kind in (1, 2, 3):
        content = mutate(rng, info.name, content, others)
        info.size = len(content)
        members[at] = (info, content)
        return b"".join(map(_member, members)) + bytes(1024)
    if kind == 4:
        intruder = tarfile.TarInfo(rng.choice(("x", "../x", "/x", "./model_config.yaml", "\udcff", "\x1b[2J")))
        intruder.type = rng.choice(b"0123456789LKSxgXDMV\x00").to_bytes(1, "little")
        intruder.linkname = "/etc/passwd"
        extended = rng.choice((b"", *PAX))
        intruder.size = len(extended)
        members.insert(at, (intruder, extended))
        return b"".join(map(_member, members)) + bytes(1024)
    start = info.offset
    header = bytearray(data[start : start + 512])
    place, width = rng.choice(((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (345, 155), (386, 97)))
    value = rng.choice((
        b"%o" % (abs(rng.choice(EXTREMES))),
        b"\x80" + rng.randbytes(width),
        b"\xff" * width,
        b"\x80" + (abs(rng.choice(EXTREMES)) % (1 << 64)).to_bytes(11, "big"),
        rng.choice((b"x" * width, b"-1", b"", b"../" * 20, b"S", b"x")),
    ))  # fmt: skip
    header[place : place + width] = value[:width].ljust(width, b"\0")
    if rng.random() < 0.9:
        header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
    return data[:start] + bytes(header) + data[start + 512 :]


def _member(member: tuple[tarfile.TarInfo, bytes]) -> bytes:
    info, content = member
    return info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape") + content + bytes(-len(content) % 512)


PAX = (
    b"20 GNU.sparse.size=1\n", b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n", b"26 GNU.sparse.map=0,9,9,99\n",
    b"25 size=9999999999999999\n", b"11 size=-1\n", b"99999999999 path=x\n", b"0 path=x\n", b"14 path=../xx\n",
    b"20 path=/etc/passwd\n", b"21 hdrcharset=BINARY\n", b"12 mtime=x\n\x00\xff", b"18 size=123456789\n", b"9" * 600,
)  # fmt: skip
