"""Full disks, read-only folders, and processes that are killed: nothing is lost and nothing half-made is left."""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nemo_merge import merge, merge_state_dicts, open_checkpoint
from nemo_merge.errors import OutputError
from nemo_merge.methods.tsvm import Tsvm
from tests.fixtures.models import same, write_huggingface, write_nemo


@pytest.fixture
def large_family(tmp_path):
    """Models of 8 MB, whose merge takes long enough to be interrupted."""
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{index}.weight": torch.randn(256, 256, generator=generator) for index in range(32)}
    experts = [
        {name: tensor + 0.1 * torch.randn(256, 256, generator=generator) for name, tensor in base.items()}
        for _ in range(2)
    ]
    folder = tmp_path / "inputs"
    folder.mkdir()
    return folder, base, experts


def command(base: Path, experts: list[Path], output: Path, *more: str) -> list[str]:
    inputs = [f"base={base}", f"experts=[{','.join(map(str, experts))}]", f"output={output}"]
    return [sys.executable, "-m", "nemo_merge", "merge", "method=tsvm", *inputs, *more]


@contextlib.contextmanager
def file_size_limit(size: int):
    """Files of this process may not grow beyond ``size`` bytes, which to a program is a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["nemo", "huggingface"])
def test_a_full_disk(large_family, tmp_path, kind):
    folder, base, experts = large_family
    write = write_nemo if kind == "nemo" else write_huggingface
    paths = [write(folder / f"{index}.{kind}", model) for index, model in enumerate((base, *experts))]
    output = tmp_path / "out"
    output.mkdir()
    (output / "merged").write_text("old")
    with (
        file_size_limit(1 << 20),
        pytest.raises(OutputError, match=r"merged.*: no space left on the disk; nothing was written"),
    ):
        merge(paths[0], paths[1:], "soup", output=output / "merged", overwrite=True)
    assert [path.name for path in output.iterdir()] == ["merged"]
    assert (output / "merged").read_text() == "old"


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting a small file system needs root")
def test_a_full_file_system(large_family, tmp_path):
    folder, base, experts = large_family
    paths = [write_nemo(folder / f"{index}.nemo", model) for index, model in enumerate((base, *experts))]
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        done = subprocess.run(command(paths[0], paths[1:], small / "m.nemo"), capture_output=True, text=True)
        assert done.returncode == 2
        assert "m.nemo: no space left on the disk" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(nemo_family, tmp_path):
    base, experts = nemo_family
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(OutputError, match="no permission"):
        merge(base, experts, "soup", output=closed / "m.nemo")


@pytest.mark.parametrize(
    ("kind", "sent", "times"),
    [
        ("nemo", signal.SIGKILL, 4),
        ("nemo", signal.SIGTERM, 2),
        ("huggingface", signal.SIGKILL, 3),
        ("huggingface", signal.SIGINT, 2),
        pytest.param("nemo", signal.SIGKILL, 100, marks=pytest.mark.slow),
        pytest.param("huggingface", signal.SIGKILL, 100, marks=pytest.mark.slow),
    ],
)
def test_a_killed_merge_leaves_the_old_output_or_the_new_one(large_family, tmp_path, kind, sent, times):
    folder, base, experts = large_family
    write = write_nemo if kind == "nemo" else write_huggingface
    paths = [write(folder / f"{index}.{kind}", model) for index, model in enumerate((base, *experts))]
    output = tmp_path / "out"
    output.mkdir()
    merge(paths[0], paths[1:], "soup", output=output / "merged")
    documents = {path.name for path in output.iterdir()}
    old, new = merge_state_dicts(base, experts, "soup"), merge_state_dicts(base, experts, "tsvm")
    random.seed(0)
    interrupted = 0
    for _ in range(times):
        process = subprocess.Popen(
            command(paths[0], paths[1:], output / "merged", "overwrite=true", "workers=1"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(random.uniform(1.0, 2.5))  # somewhere between start-up and the end
        process.send_signal(sent)
        _, message = process.communicate(timeout=60)
        assert "Traceback" not in message
        interrupted += process.returncode != 0
        with open_checkpoint(output / "merged") as checkpoint:
            found = dict(checkpoint)
            assert same(found, old) or same(found, new)
        left = {path.name for path in output.iterdir()} - documents
        assert all(re.fullmatch(r"\.merged\.(.*\.)?[0-9a-z_]+\.partial", name) for name in left)
        if same(found, new):  # the next one starts from the old output again
            merge(paths[0], paths[1:], "soup", output=output / "merged", overwrite=True)
    merge(paths[0], paths[1:], "tsvm", output=output / "merged", overwrite=True)
    with open_checkpoint(output / "merged") as checkpoint:
        assert same(dict(checkpoint), new)
    assert {path.name for path in output.iterdir()} - documents <= {
        name for name in left if not re.fullmatch(r"\.merged\.[0-9a-f]{16}\.partial", name)
    }
    if not interrupted:
        pytest.skip("this machine finished every merge before it was killed")


@pytest.mark.parametrize("kind", ["nemo", "huggingface"])
def test_a_second_run_takes_up_what_the_first_finished(large_family, tmp_path, monkeypatch, kind):
    folder, base, experts = large_family
    write = write_nemo if kind == "nemo" else write_huggingface
    paths = [write(folder / f"{index}.{kind}", model) for index, model in enumerate((base, *experts))]
    output = tmp_path / "out"
    output.mkdir()
    merge(paths[0], paths[1:], "tsvm", output=output / "whole")
    made: list[str] = []
    original = Tsvm.factors

    def interrupt(self, deltas):
        if len(made) == 10:
            raise KeyboardInterrupt
        made.append("a tensor")
        return original(self, deltas)

    monkeypatch.setattr(Tsvm, "factors", interrupt)
    with pytest.raises(KeyboardInterrupt):
        merge(paths[0], paths[1:], "tsvm", output=output / "merged", workers=1)
    assert not (output / "merged").exists()
    assert any(path.name.endswith(".partial") for path in output.iterdir())
    made.clear()
    monkeypatch.setattr(Tsvm, "factors", lambda self, deltas: made.append("a tensor") or original(self, deltas))
    merge(paths[0], paths[1:], "tsvm", output=output / "merged")
    assert len(made) == len(base) - 10
    assert not any(path.name.endswith(".partial") for path in output.iterdir())
    if kind == "nemo":
        assert (output / "merged").read_bytes() == (output / "whole").read_bytes()
    else:
        for path in (output / "whole").iterdir():
            if path.name != "README.md":  # it names the folder
                assert path.read_bytes() == (output / "merged" / path.name).read_bytes()


def test_an_error_in_the_middle_leaves_nothing(nemo_family, tmp_path, monkeypatch):
    from nemo_merge.methods.soup import Soup

    base, experts = nemo_family

    def fail(self, *_):
        raise RuntimeError("broken method")

    monkeypatch.setattr(Soup, "combine_block", fail)
    with pytest.raises(RuntimeError, match="broken method"):
        merge(base, experts, "soup", output=tmp_path / "m.nemo")
    assert [path.name for path in tmp_path.iterdir()] == ["inputs"]
