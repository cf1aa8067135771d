"""Inputs on disks and networks that fail, are slow, or are written to while a merge reads them."""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nemo_merge import cli, merge, open_checkpoint
from nemo_merge.checkpoints import _digests, nemo
from nemo_merge.errors import CheckpointError
from nemo_merge.methods.soup import Soup
from tests.fixtures.files import write_as
from tests.fixtures.models import family, same

KINDS = ("nemo", "huggingface", "torch")


@pytest.fixture(params=KINDS)
def paths(request, tmp_path):
    base, experts = family()
    folder = tmp_path / "inputs"
    folder.mkdir()
    return [write_as(request.param, folder, f"input{index}", model) for index, model in enumerate((base, *experts))]


class Disk:
    """Counts what is read of inputs, and fails or waits at one place."""

    def __init__(self, monkeypatch, fail_at: int = -1, error: int = errno.EIO, wait: float = 0.0) -> None:
        self.count = 0
        self._fail_at, self._error, self._wait = fail_at, error, wait
        real_open, real_pread, real_read = io.open, os.pread, nemo._Bounded._read

        class File(io.FileIO):
            def readinto(inner, buffer):
                self.touch(inner.name)
                return super().readinto(buffer)

        def opened(file, mode="r", buffering=-1, *args, **kwargs):
            if "inputs" not in str(file):
                return real_open(file, mode, buffering, *args, **kwargs)
            self.touch(file)
            return File(file) if buffering == 0 else real_open(file, mode, buffering, *args, **kwargs)

        def pread(fd, *args):
            self.touch(os.readlink(f"/proc/self/fd/{fd}"))
            return real_pread(fd, *args)

        def read(inner, size):
            self.touch(inner.name)
            return real_read(inner, size)

        monkeypatch.setattr(_digests, "_remembered", lambda *_: None)  # every merge reads the same
        monkeypatch.setattr(builtins, "open", opened)
        monkeypatch.setattr(io, "open", opened)
        monkeypatch.setattr(os, "pread", pread)
        monkeypatch.setattr(nemo._Bounded, "_read", read)

    def touch(self, path) -> None:
        if "inputs" in str(path):
            time.sleep(self._wait)
            self.count += 1
            if self.count - 1 == self._fail_at:
                raise OSError(self._error, os.strerror(self._error), str(path))


def test_every_read_may_fail(paths, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        merge(paths[0], paths[1:], "soup", output=tmp_path / "whole", workers=1)
        reads = disk.count
    assert reads > 10
    errors = (errno.EIO, errno.ETIMEDOUT, errno.ESTALE)
    for place in range(reads):
        error = errors[place % 3]
        with monkeypatch.context() as patch:
            Disk(patch, place, error)
            with pytest.raises(CheckpointError, match=rf"inputs.*cannot be read \({os.strerror(error)}\)"):
                merge(paths[0], paths[1:], "soup", output=out / "merged", workers=1)
        assert not list(out.iterdir())


@pytest.mark.parametrize("place", [0, 9, -1])
def test_a_failing_disk_on_the_command_line(paths, tmp_path, monkeypatch, capsys, place):
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        merge(paths[0], paths[1:], "soup", output=tmp_path / "whole", workers=1)
        place %= disk.count
    arguments = [f"base={paths[0]}", f"experts=[{','.join(map(str, paths[1:]))}]", f"output={tmp_path / 'm'}"]
    monkeypatch.setattr(sys, "argv", ["nemo-merge", "merge", "method=soup", "workers=1", *arguments])
    handler = signal.getsignal(signal.SIGTERM)
    Disk(monkeypatch, place)
    with pytest.raises(SystemExit) as left:
        cli.main()
    signal.signal(signal.SIGTERM, handler)
    assert left.value.code == 2
    assert "Input/output error" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
    assert not list(tmp_path.glob(".m*"))


def test_slow_reads_only_take_longer(paths, tmp_path, monkeypatch):
    merge(paths[0], paths[1:], "soup", output=tmp_path / "a")
    Disk(monkeypatch, wait=0.01)
    merge(paths[0], paths[1:], "soup", output=tmp_path / "b")
    with open_checkpoint(tmp_path / "a") as a, open_checkpoint(tmp_path / "b") as b:
        assert same(dict(a), dict(b))


def weights_of(path: Path) -> Path:
    return path if path.is_file() else path / "model.safetensors"


def touched(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def replaced(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(path.read_bytes())
    state = path.stat()
    os.utime(new, ns=(state.st_atime_ns, state.st_mtime_ns))
    new.replace(path)


def grown(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(bytes(512))


@pytest.mark.parametrize("change", [touched, replaced, grown, Path.unlink], ids=lambda change: change.__name__)
@pytest.mark.parametrize("which", [0, 2])
def test_an_input_that_changes_is_noticed_before_the_output_appears(paths, tmp_path, monkeypatch, change, which):
    out = tmp_path / "out"
    out.mkdir()
    real, pending = Soup.combine_block, [change]

    def combine_block(self, *args):
        while pending:
            pending.pop()(weights_of(paths[which]))
        return real(self, *args)

    monkeypatch.setattr(Soup, "combine_block", combine_block)
    message = "cannot be read" if change is Path.unlink else "changed while it was read; nothing was written, run again"
    with pytest.raises(CheckpointError, match=rf"input{which}.*{message}"):
        merge(paths[0], paths[1:], "soup", output=out / "merged")
    assert not list(out.iterdir())


def test_an_input_that_is_cut_short_leaves_the_old_output(tmp_path):
    """A mapped file that loses its end kills the process that reads it; the output must not suffer."""
    base = {f"layers.{index}.weight": torch.randn(256, 256) for index in range(8)}
    folder = tmp_path / "inputs"
    folder.mkdir()
    expert = {name: tensor + 1 for name, tensor in base.items()}
    inputs = [write_as("nemo", folder, name, model) for name, model in (("base", base), ("expert", expert))]
    out = tmp_path / "out"
    out.mkdir()
    merge(inputs[0], inputs[1:], "soup", output=out / "merged", scale=0.5)
    old = (out / "merged").read_bytes()
    code = (
        "import os, sys, nemo_merge\n"
        "from nemo_merge.methods.soup import Soup\n"
        "real = Soup.combine\n"
        "def combine(self, *args):\n"
        "    os.truncate(sys.argv[2], 4096)\n"
        "    return real(self, *args)\n"
        "Soup.combine = combine\n"
        "nemo_merge.merge(sys.argv[1], [sys.argv[2]], 'soup', output=sys.argv[3], overwrite=True, workers=1)\n"
    )
    command = [sys.executable, "-c", code, *map(str, inputs), str(out / "merged")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (-signal.SIGBUS, 1)
    assert (out / "merged").read_bytes() == old
    write_as("nemo", folder, "expert", expert)
    merge(inputs[0], inputs[1:], "soup", output=out / "merged", scale=0.25, overwrite=True)
    assert not list(out.glob(".merged*"))  # what was left has gone
