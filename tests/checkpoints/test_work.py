"""The hidden folder in which an output is made."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from nemo_merge.checkpoints import _work
from nemo_merge.checkpoints._pending import Layout, Slot
from nemo_merge.checkpoints._work import WorkFolder, check_output, write_whole
from nemo_merge.errors import OutputError

KEY, OTHER = "0123456789abcdef", "f" * 16


def layout() -> Layout:
    return Layout(16, {}, {"w": Slot(0, 16)})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_at_once_with_the_usual_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        (tmp_path / "out").write_text("old")
        work = WorkFolder(tmp_path / "out", KEY)
        work.add("out", layout()).write("w", 0, torch.tensor([1, 2]))
        assert (tmp_path / "out").read_text() == "old"
        work.publish_file("out")
    finally:
        os.umask(before)
    assert (tmp_path / "out").read_bytes() == torch.tensor([1, 2]).numpy().tobytes()
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["out"]
    work.discard()
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("kind", ["folder", "file", "link", "nothing"])
def test_a_folder_takes_the_place_of_anything(tmp_path, monkeypatch, exchange, kind):
    if not exchange:
        monkeypatch.setattr(_work, "_exchange", lambda a, b: False)
    target = tmp_path / "out"
    if kind == "folder":
        target.mkdir()
        (target / "old").touch()
    elif kind == "file":
        target.touch()
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir()
        target.symlink_to(tmp_path / "elsewhere")
    work = WorkFolder(target, KEY)
    work.add("big", Layout(3, {0: b"big"}))
    (work.path / "of an earlier output").touch()
    work.publish_folder({"small": b"small"})
    assert names(target) == ["big", "small"]
    assert not target.is_symlink()
    assert names(tmp_path) == (["elsewhere", "out"] if kind == "link" else ["out"])


def test_only_the_same_merge_goes_on_with_what_is_left(tmp_path):
    work = WorkFolder(tmp_path / "out", KEY)
    work.add("out", layout()).write("w", 0, torch.tensor([1, 2]))
    assert work.pause()
    assert names(tmp_path) == [f".out.{KEY}.partial"]
    again = WorkFolder(tmp_path / "out", KEY)
    again.add("out", layout())
    assert again.finished == {"w"}
    assert again.pause()
    other = WorkFolder(tmp_path / "out", OTHER)
    assert names(tmp_path) == [f".out.{OTHER}.partial"]
    other.add("out", layout())
    assert not other.finished
    assert not other.pause()  # nothing is finished, so nothing is kept
    assert not names(tmp_path)


def test_other_peoples_files_are_left_alone(tmp_path):
    for name in (f".other.{KEY}.partial", ".out.partial", f"out.{KEY}.partial", f".out.{KEY}.partial.txt"):
        (tmp_path / name).mkdir()
    before = names(tmp_path)
    WorkFolder(tmp_path / "out", OTHER).discard()
    assert names(tmp_path) == before


@pytest.mark.parametrize("same", [True, False], ids=["same merge", "another merge"])
def test_a_process_at_work_is_not_disturbed(tmp_path, same):
    code = (
        "import sys, pathlib; from nemo_merge.checkpoints._work import WorkFolder\n"
        f"work = WorkFolder(pathlib.Path(sys.argv[1]), {KEY!r})\nprint('ready', flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        if same:
            with pytest.raises(OutputError, match="another process is writing it now"):
                WorkFolder(tmp_path / "out", KEY)
        else:
            WorkFolder(tmp_path / "out", OTHER).discard()
        assert names(tmp_path) == [f".out.{KEY}.partial"]
        process.kill()
    WorkFolder(tmp_path / "out", KEY).discard()
    assert not names(tmp_path)


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


def test_small_files_appear_at_once(tmp_path):
    write_whole(tmp_path / "a", b"1")
    write_whole(tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"2"
    with pytest.raises(OutputError, match="cannot be written"):
        write_whole(tmp_path / "missing" / "a", b"1")
    assert names(tmp_path) == ["a"]
