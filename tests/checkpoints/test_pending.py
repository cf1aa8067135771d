"""Files in the making: laid out, filled tensor by tensor, and taken up again."""

from __future__ import annotations

import itertools
import random
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_merge.checkpoints._journal import Journal
from nemo_merge.checkpoints._pending import Layout, PendingFile, Slot, byte_sum


def layout() -> Layout:
    return Layout(40, {0: b"head", 36: b"tail"}, {"v": Slot(4, 16), "w": Slot(20, 16)})


V, W = torch.tensor([1, 2]), torch.tensor([3, 4])


@pytest.fixture
def start(tmp_path):
    """Starts the file as a process does that finds what others left."""

    def start() -> PendingFile:
        return PendingFile(tmp_path / "out", layout(), Journal(tmp_path / "journal"), checksums=True)

    return start


def test_content(start, tmp_path):
    file = start()
    file.write("w", 0, W[:1])
    file.write("w", 1, W[1:])
    with pytest.raises(RuntimeError, match="not all tensors were written: \\['v'\\]"):
        file.sync()
    file.write("v", 0, V)
    file.sync()
    expected = b"head" + V.numpy().tobytes() + W.numpy().tobytes() + b"tail"
    assert (tmp_path / "out").read_bytes() == expected
    assert file.checksums == {"v": zlib.crc32(V.numpy()), "w": zlib.crc32(W.numpy())}


def test_blocks_must_come_in_order(start):
    file = start()
    with pytest.raises(ValueError, match="in order"):
        file.write("w", 1, W[1:])
    with pytest.raises(ValueError, match="fit its slot"):
        file.write("w", 0, torch.arange(3))


def test_finished_tensors_are_taken_up(start, tmp_path):
    first = start()
    first.write("v", 0, V)
    first.write("w", 0, W[:1])  # not complete
    first.append(b"what comes behind the tensors")
    first.close()
    second = start()
    assert second.finished == {"v"}
    second.write("w", 0, W)
    second.sync()
    assert (tmp_path / "out").read_bytes() == b"head" + V.numpy().tobytes() + W.numpy().tobytes() + b"tail"
    assert second.checksums["v"] == zlib.crc32(V.numpy())


@pytest.mark.parametrize("damage", ["zeros", "cut", "journal cut", "journal torn"])
def test_what_did_not_reach_the_disk_is_made_again(start, tmp_path, damage):
    first = start()
    first.write("v", 0, V)
    first.write("w", 0, W)
    first.close()
    if damage == "zeros":
        data = bytearray((tmp_path / "out").read_bytes())
        data[4:20] = bytes(16)
        (tmp_path / "out").write_bytes(data)
    elif damage == "cut":
        (tmp_path / "out").write_bytes((tmp_path / "out").read_bytes()[:26])
    else:
        lines = (tmp_path / "journal").read_text().splitlines()
        torn = "" if damage == "journal cut" else lines[0][:-1]
        (tmp_path / "journal").write_text(lines[1] + "\n" + torn)
    second = start()
    assert second.finished == (set() if damage == "cut" else {"w"})
    second.write("v", 0, V)
    second.close()
    assert start().finished == ({"v"} if damage == "cut" else {"v", "w"})


@given(st.binary(max_size=100), st.lists(st.integers(0, 100), max_size=4))
def test_sums_of_parts_add_up(data, cuts):
    whole = byte_sum(memoryview(data))
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    parts = [byte_sum(memoryview(data)[a:b], a) for a, b in itertools.pairwise(places)]
    assert sum(parts) % 2**64 == whole
    words = data + bytes(-len(data) % 8)
    assert whole == sum(int.from_bytes(words[i : i + 8], "little") for i in range(0, len(words), 8)) % 2**64


def test_a_sum_tells_pages_of_zeros():
    data = bytearray(random.Random(0).randbytes(1 << 16))
    before = byte_sum(memoryview(bytes(data)))
    data[4096:8192] = bytes(4096)
    assert byte_sum(memoryview(bytes(data))) != before
