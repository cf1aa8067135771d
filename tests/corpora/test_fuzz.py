"""Damaged corpora: whatever is in the files, rows are left out or one message says what is wrong."""

from __future__ import annotations

import logging
import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from nemo_merge.corpora import find
from nemo_merge.errors import NemoMergeError

from .layouts import LAYOUTS

pytest.importorskip("lhotse")
pytest.importorskip("pyarrow")
_TEXTS = (
    ".trs", ".exb", ".cha", ".tdf", ".tbl", ".txt", ".tsv", ".csv", ".json", ".jsonl", ".vtt", ".scp", ".pto", ".parquet", ".gz", "",
)  # fmt: skip
_PIECES = (
    b"\t",
    b"\n",
    b"<",
    b">",
    b"\x00",
    b"\xff\xfe",
    b"\x15",
    b'"',
    b"{",
    b"nan",
    b"-1",
    b"9" * 400,
    b"&x;",
    b"\\ud800",
)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """One of the ways in which files go wrong."""
    place, other = sorted((rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)))
    lines = content.split(b"\n")
    choices = [
        content[:place],
        content[:place] + content[other:],
        content[:place] + rng.choice(_PIECES) + content[place:],
        content[:place] + rng.choice(_PIECES) + content[place + 3 :],
        content + content,
        b"\n".join(rng.sample(lines, len(lines))),
        content.replace(b"\t", b" "),
        content.replace(b"0", rng.choice(_PIECES)),
        b"",
        content.decode("utf-8", "replace").encode("utf-16"),
    ]
    return rng.choice(choices)


def damage(folder: Path, rng: random.Random) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in _TEXTS)
    for path in rng.sample(files, min(len(files), rng.choice([1, 1, 2]))):
        path.write_bytes(damaged(path.read_bytes(), rng))


def attempt(folder: Path, rng: random.Random, options: dict, recipe: str) -> None:
    for name in ("work", "out"):
        shutil.rmtree(folder / name, ignore_errors=True)
    shutil.copytree(folder / "sound", folder / "work")
    damage(folder / "work", rng)
    with suppress(NemoMergeError):  # anything else fails the test
        find(recipe).prepare(folder / "work", folder / "out" if rng.random() < 0.3 else None, **options)


@pytest.mark.parametrize("tries", [3, pytest.param(60, marks=pytest.mark.slow)], ids=["a few", "many"])
@pytest.mark.parametrize("make", LAYOUTS, ids=lambda make: make.__name__)
def test_damaged_files(make, tries, tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    (tmp_path / "sound").mkdir()
    made = make(tmp_path / "sound")
    for seed in range(tries):
        attempt(tmp_path, random.Random(f"{make.__name__} {seed}"), made.options, made.recipe)
