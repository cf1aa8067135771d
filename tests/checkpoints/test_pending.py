"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from nemo_merge.checkpoints import _pending
from nemo_merge.checkpoints._pending import Layout, PendingFile, Slot, check_output
from nemo_merge.errors import OutputError


@pytest.fixture(params=["unnamed", "named"])
def way(request, monkeypatch):
    """With unnamed files, and as on file systems that have none."""
    if request.param == "named":
        monkeypatch.setattr(os, "O_TMPFILE", 1 << 30, raising=False)
    return request.param


def layout() -> Layout:
    return Layout(24, {0: b"head", 20: b"tail"}, {"w": Slot(4, 16)})


def test_appears_at_publish_only(tmp_path, way):
    file = PendingFile(tmp_path / "out", layout())
    file.write("w", 0, torch.arange(1))
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.iterdir())) == (1 if way == "named" else 0)
    with pytest.raises(RuntimeError, match="not all tensors"):
        file.publish()
    file.discard()
    assert not list(tmp_path.iterdir())


def test_content_and_permissions(tmp_path, way):
    before = os.umask(0o027)
    try:
        file = PendingFile(tmp_path / "out", layout())
        file.write("w", 0, torch.tensor([1]))
        file.write("w", 1, torch.tensor([2]))
        file.publish()
    finally:
        os.umask(before)
    assert (tmp_path / "out").read_bytes() == b"head" + torch.tensor([1, 2]).numpy().tobytes() + b"tail"
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    file.discard()
    assert (tmp_path / "out").exists()


def test_replaces_what_is_there(tmp_path, way):
    (tmp_path / "out").write_text("old")
    file = PendingFile(tmp_path / "out", Layout(3, {0: b"new"}))
    assert (tmp_path / "out").read_text() == "old"
    file.publish()
    assert (tmp_path / "out").read_text() == "new"


def test_blocks_must_come_in_order(tmp_path):
    file = PendingFile(tmp_path / "out", layout())
    with pytest.raises(ValueError, match="in order"):
        file.write("w", 1, torch.tensor([2]))
    with pytest.raises(ValueError, match="fit its slot"):
        file.write("w", 0, torch.arange(3))


def test_outputs_that_exist_or_have_no_folder(tmp_path):
    (tmp_path / "there").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    check_output(tmp_path / "new", False)
    check_output(tmp_path / "there", True)
    for name in ("there", "dangling"):
        with pytest.raises(OutputError, match="overwrite=true"):
            check_output(tmp_path / name, False)
    with pytest.raises(OutputError, match="create it first"):
        check_output(tmp_path / "a" / "b", False)


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("kind", ["folder", "file", "link", "nothing"])
def test_a_folder_takes_the_place_of_anything(tmp_path, monkeypatch, exchange, kind):
    if not exchange:
        monkeypatch.setattr(_pending, "_exchange", lambda a, b: False)
    target = tmp_path / "out"
    if kind == "folder":
        target.mkdir()
        (target / "old").touch()
    elif kind == "file":
        target.touch()
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir()
        target.symlink_to(tmp_path / "elsewhere")
    folder = _pending.PendingFolder(target)
    folder.add("big", Layout(3, {0: b"big"}))
    folder.publish({"small": b"small"})
    assert sorted(path.name for path in target.iterdir()) == ["big", "small"]
    assert not target.is_symlink()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == (["elsewhere", "out"] if kind == "link" else ["out"])


def test_what_killed_processes_of_this_machine_left_is_removed(tmp_path):
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead, node = done.stdout.strip(), platform.node()
    gone = [f".m.nemo.{node}-{dead}.partial", f".m.nemo.{node}-{dead}-abc123.partial"]
    kept = [
        f".m.nemo.{node}-{os.getpid()}.partial",
        f".m.nemo.elsewhere-{dead}.partial",
        f".other.nemo.{node}-{dead}.partial",
        f".m.nemo.{dead}.old",
        "m.nemo.partial",
    ]
    for name in (*gone, *kept):
        (tmp_path / name).write_text("x")
    (tmp_path / gone[0]).unlink()
    (tmp_path / gone[0]).mkdir()
    ((tmp_path / gone[0]) / "model.safetensors").write_text("x")
    check_output(tmp_path / "m.nemo", overwrite=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
