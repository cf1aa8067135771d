"""Full disks, read-only folders, and processes that are killed: nothing is lost and nothing half-made is left."""

from __future__ import annotations

import contextlib
import json
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
    """Models of 8 MB."""
    return layers(tmp_path, 256)


@pytest.fixture
def small_family(tmp_path):
    """Models of a megabyte, whose merge takes some tenths of a second in as many steps as that of a large one."""
    return layers(tmp_path, 96)


def layers(tmp_path: Path, width: int):
    """A folder for inputs, a base and two experts of 32 square tensors."""
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{index}.weight": torch.randn(width, width, generator=generator) for index in range(32)}
    experts = [
        {name: tensor + 0.1 * torch.randn(width, width, generator=generator) for name, tensor in base.items()}
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


SERVER = """
import json, os, signal, sys
from nemo_merge import cli
from nemo_merge.cli import merge, settings
from nemo_merge.merging import merge
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv[1:] = json.loads(line)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where tests run in the background
        try:
            cli.main()
        except SystemExit as left:
            os._exit(left.code or 0)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""Starts each merge as a process of its own that has imported everything already, which saves its first second."""


class Server:
    """Runs commands, and sends each a signal after a while."""

    def __init__(self, errors: Path) -> None:
        self._errors = open(errors, "w")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def run(self, arguments: list[str], sent: signal.Signals | None = None, after: float = 0.0) -> tuple[int, float]:
        """Exit code of a command that gets the signal ``after`` so many seconds, and the seconds that it took."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        started = time.monotonic()
        if sent is not None:
            time.sleep(after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sent)
        code = int(self._process.stdout.readline())
        return code, time.monotonic() - started

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)
        self._errors.close()


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path / "errors")
    yield server
    server.close()
    assert "Traceback" not in (tmp_path / "errors").read_text()


@pytest.mark.parametrize(
    ("kind", "sent", "times"),
    [
        ("nemo", signal.SIGKILL, 8),
        ("nemo", signal.SIGTERM, 4),
        ("huggingface", signal.SIGKILL, 8),
        ("huggingface", signal.SIGINT, 4),
        pytest.param("nemo", signal.SIGKILL, 100, marks=pytest.mark.slow),
        pytest.param("huggingface", signal.SIGKILL, 100, marks=pytest.mark.slow),
    ],
)
def test_a_killed_merge_leaves_the_old_output_or_the_new_one(small_family, tmp_path, server, kind, sent, times):
    folder, base, experts = small_family
    write = write_nemo if kind == "nemo" else write_huggingface
    paths = [write(folder / f"{index}.{kind}", model) for index, model in enumerate((base, *experts))]
    output = tmp_path / "out"
    output.mkdir()
    merge(paths[0], paths[1:], "soup", output=output / "merged")
    documents = {path.name for path in output.iterdir()}
    old, new = merge_state_dicts(base, experts, "soup"), merge_state_dicts(base, experts, "tsvm")
    arguments = command(paths[0], paths[1:], output / "merged", "overwrite=true", "workers=1")[3:]
    code, seconds = server.run(
        [word if word != f"output={output / 'merged'}" else f"output={tmp_path / 'x'}" for word in arguments]
    )
    assert code == 0
    chance = random.Random(0)
    interrupted = computing = 0
    for _ in range(times):
        code, _ = server.run(arguments, sent, chance.uniform(0, 1.3 * seconds))  # from the first moment to the last
        interrupted += code != 0
        left = {path.name for path in output.iterdir()} - documents
        assert all(re.fullmatch(r"\.merged\.(.*\.)?[0-9a-z_]+\.partial", name) for name in left)
        computing += code != 0 and bool(left)  # it had begun to write
        with open_checkpoint(output / "merged") as checkpoint:
            found = dict(checkpoint)
            assert same(found, old) or same(found, new)
        if same(found, new) or computing % 2:  # the next one starts from the old output again
            merge(paths[0], paths[1:], "soup", output=output / "merged", overwrite=True)
    merge(paths[0], paths[1:], "tsvm", output=output / "merged", overwrite=True)
    with open_checkpoint(output / "merged") as checkpoint:
        assert same(dict(checkpoint), new)
    assert {path.name for path in output.iterdir()} - documents <= {
        name for name in left if not re.fullmatch(r"\.merged\.[0-9a-f]{16}\.partial", name)
    }
    print(f"{seconds:.2f} s; of {times} merges {interrupted} were stopped, {computing} of them while they computed")
    assert interrupted >= times // 10  # how many depends on what else the machine does
    if sent == signal.SIGKILL:
        assert computing >= times // 20


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_command_that_is_killed_while_it_starts(large_family, tmp_path, sent):
    folder, base, experts = large_family
    paths = [write_nemo(folder / f"{index}.nemo", model) for index, model in enumerate((base, *experts))]
    output = tmp_path / "out"
    output.mkdir()
    for after in (0.5, 1.5):
        process = subprocess.Popen(
            command(paths[0], paths[1:], output / "merged", "workers=1"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        time.sleep(after)
        process.send_signal(sent)
        _, message = process.communicate(timeout=60)
        assert process.returncode
        assert b"Traceback" not in message
        assert not (output / "merged").exists()


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
