"""SHA-256 of files, remembered as long as they do not change."""

from __future__ import annotations

import hashlib
import os
import time

import pytest

from nemo_merge.checkpoints import _digests
from nemo_merge.checkpoints._digests import cache_folder, sha256_of
from nemo_merge.errors import CheckpointError


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file that has not changed for a while."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "model"
    path.write_bytes(b"weights" * 1000)
    monkeypatch.setattr(time, "time_ns", lambda: path.stat().st_ctime_ns + 10_000_000_000)
    return path


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that are read."""
    names = []
    original = open

    def spy(path, *arguments, **options):
        if options.get("buffering") == 0:
            names.append(os.path.basename(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr(_digests, "open", spy, raising=False)
    return names


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_read_once(file, hashed):
    assert sha256_of(file) == sha256_of(file) == digest(file)
    assert hashed == ["model"]
    assert sha256_of(file, anew=True) == digest(file)
    assert hashed == ["model", "model"]


@pytest.mark.parametrize("change", ["content", "content and time", "another file"])
def test_a_changed_file_is_read_again(file, hashed, change):
    before = file.stat()
    sha256_of(file)
    time.sleep(0.02)  # more than the clock of any file system that tests run on
    if change == "another file":
        other = file.with_name("other")
        other.write_bytes(b"WEIGHTS" * 1000)
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.replace(other, file)
    else:
        file.write_bytes(b"WEIGHTS" * 1000)
    if change == "content and time":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sha256_of(file) == digest(file)
    assert hashed == ["model", "model"]


def test_a_file_that_has_just_changed_is_not_remembered(file, hashed, monkeypatch):
    monkeypatch.setattr(time, "time_ns", lambda: file.stat().st_ctime_ns + 1_000_000_000)
    assert sha256_of(file) == sha256_of(file)
    assert hashed == ["model", "model"]


@pytest.mark.parametrize("note", ["", "{", "[]", '{"state": 1}', '{"state": [], "sha256": "xyz"}'])
def test_damaged_notes_are_not_believed(file, note):
    expected = sha256_of(file)
    (path,) = cache_folder().iterdir()
    path.write_text(note)
    assert sha256_of(file) == expected


def test_without_a_folder_to_write_to(file, monkeypatch):
    file.with_name("blocked").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file.with_name("blocked")))
    assert sha256_of(file) == digest(file)


def test_a_file_that_is_gone(file):
    with pytest.raises(CheckpointError, match="missing: cannot be read"):
        sha256_of(file.with_name("missing"))
