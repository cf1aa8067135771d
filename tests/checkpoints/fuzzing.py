"""Opens damaged checkpoints in a process with limits, and reports whatever is neither a clear error nor a correct read.

A case is a number. ``python -m tests.checkpoints.fuzzing NUMBER`` runs one again, shows its outcome and leaves its file:

    python -m tests.checkpoints.fuzzing 4711
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from nemo_merge import open_checkpoint
from nemo_merge.errors import NemoMergeError
from tests.fixtures.adapters import lora_folder
from tests.fixtures.files import FORMATS
from tests.fixtures.models import write_nemo

from .mutations import mutate

MEMORY = 512 << 20
"""Bytes of address space that opening and reading one file may take on top of what the process has."""
SECONDS = 20
"""Processor time for one file; a hang takes longer."""
LARGEST = 64 << 20
"""Bytes by which tensors may exceed the file that holds them (see ``docs/explanation/safety.md``)."""
_FORBIDDEN = (
    "socket.",
    "subprocess.",
    "ctypes.",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "pickle.find_class",
)


@dataclass(frozen=True)
class Seed:
    """A valid checkpoint, whose files are damaged one at a time."""

    kind: str
    name: str
    files: dict[str, bytes]


def small_tensors() -> dict[str, torch.Tensor]:
    """Few, because every instruction of a pickle takes time."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "encoder.weight": torch.randn(3, 4, generator=generator),
        "norm.running_var": torch.rand(3, generator=generator).to(torch.bfloat16),
        "norm.num_batches_tracked": torch.tensor(7),
    }
    return {**tensors, "decoder.weight": tensors["encoder.weight"]}


def write_seeds(folder: Path) -> None:
    """One valid checkpoint of every format, each in a folder of its own."""
    for kind, (suffix, write) in FORMATS.items():
        tensors = small_tensors()
        if kind.startswith("huggingface"):
            del tensors["decoder.weight"]
        (folder / kind).mkdir(parents=True)
        write(folder / kind / f"model{suffix}", tensors)
    for kind in ("adapter", "adapter bin"):
        factors = {"encoder.q": (torch.ones(3, 1), torch.ones(1, 4)), "encoder.v": (torch.ones(3, 2), torch.ones(2, 4))}
        lora_folder(folder / kind / "model", factors)
    tensors_file = folder / "adapter bin" / "model" / "adapter_model.safetensors"
    torch.save(load_file(tensors_file), tensors_file.with_suffix(".bin"))
    tensors_file.unlink()
    (folder / "nemo adapter").mkdir()
    modules = {"__cfg__": {"a": {"_target_": "x.Y"}}, "encoder:a": [{"a.weight": torch.ones(2, 2)}] * 2}
    torch.save(modules, folder / "nemo adapter" / "model.pt")
    artefacts = {"vocab.txt": b"a\nb\n", "tokenizer.model": bytes(range(256))}
    for kind, packed in (("nemo with artefacts", False), ("nemo packed", True)):
        (folder / kind).mkdir()
        config = {"target": "x.Y", "tokenizer": {"model_path": "nemo:tokenizer.model"}, "labels": ["a", "b"]}
        write_nemo(folder / kind / "model.nemo", small_tensors(), config, artefacts, packed)


def read_seeds(folder: Path) -> list[Seed]:
    """What :func:`write_seeds` left."""
    seeds = []
    for kind in sorted(folder.iterdir()):
        paths = sorted(path for path in kind.rglob("*") if path.is_file())
        files = {str(path.relative_to(kind)): path.read_bytes() for path in paths}
        seeds.append(Seed(kind.name, next(iter(kind.iterdir())).name, files))
    return seeds


def damaged(seeds: Sequence[Seed], number: int) -> tuple[Seed, str, bytes]:
    """The case of that number: a checkpoint, which of its files is another one, and its bytes."""
    rng = random.Random(number)
    seed = seeds[number % len(seeds)]
    file = rng.choice(sorted(seed.files))
    other = rng.choice(seeds)
    with warnings.catch_warnings(action="ignore"):
        return seed, file, mutate(rng, file, seed.files[file], list(other.files.values()))


def asks_for_averages(number: int, path: Path) -> bool:
    """Whether the case reads averaged weights, which some of the seeds hold."""
    return number % 3 == 0 and path.suffix in (".ckpt", ".pt")


class Watch:
    """Notices what a reader must not do: connections, processes, files written, output, memory."""

    def __init__(self, scratch: Path) -> None:
        self.active = False
        self._scratch = str(scratch)
        self._found: list[str] = []
        self._errors = os.memfd_create("stderr")
        os.dup2(self._errors, 2)
        self._memory = _peak()
        sys.addaudithook(self._audit)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event.startswith(_FORBIDDEN):
            self._found.append(f"{event}{args!r:.200}")
        elif event == "open" and isinstance(args[0], str) and not args[0].startswith(self._scratch):
            if isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._found.append(f"writes {args[0]}")
        elif event == "import" and args[0] not in sys.modules and not args[0].startswith("encodings"):
            self._found.append(f"imports {args[0]}")

    def problems(self) -> list[str]:
        """What was noticed since the last time."""
        found, self._found[:] = list(self._found), []
        if os.lseek(self._errors, 0, os.SEEK_CUR):
            found.append("writes to stderr: " + os.pread(self._errors, 1000, 0).decode(errors="replace"))
            os.ftruncate(self._errors, 0)
            os.lseek(self._errors, 0, os.SEEK_SET)
        if left := os.listdir(self._scratch):
            found.append(f"leaves files: {left}")
            for name in left:
                shutil.rmtree(Path(self._scratch, name), ignore_errors=True)
        if (peak := _peak()) > self._memory + MEMORY // 2:
            found.append(f"takes {(peak - self._memory) >> 20} MiB")
            self._memory = peak
        return found


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def outcome(path: Path, stored: int, ema: bool) -> str:
    """Opens a checkpoint and reads all its tensors.

    Args:
        path: the checkpoint.
        stored: bytes of its files.
        ema: ask for averaged weights.

    Returns:
        ``read`` or ``refused``.

    Raises:
        AssertionError: it can be opened, but not read as it says; or the error is not clear.
    """
    try:
        with open_checkpoint(path, ema=ema) as checkpoint:
            assert list(checkpoint), "no tensors"
            total = sum(spec.nbytes for name, spec in checkpoint.specs.items() if name not in checkpoint.ties)
            assert total <= 2 * stored + LARGEST, f"{total} bytes of tensors in a file of {stored}"
            assert checkpoint.ties.keys() <= checkpoint.specs.keys() >= set(checkpoint.ties.values())
            for name, spec in checkpoint.specs.items():
                tensor = checkpoint[name]
                assert (tuple(tensor.shape), tensor.dtype) == (spec.shape, spec.dtype), name
                tensor.clone()  # touches all of it
        return "read"
    except NemoMergeError as error:
        message = str(error)
        assert str(path) in message, f"the error does not name the file: {message[:300]}"
        assert len(message) < 3000, f"the error is {len(message)} characters long: {message[:300]}"
        assert message.replace("\n", " ").isprintable(), f"the error is not printable: {message[:300]!r}"
        return "refused"


def run(seeds: Sequence[Seed], numbers: Sequence[int], work: Path, log: int) -> Counter[str]:
    """Runs cases; the number of the present one stands in the file ``log`` in case this process dies."""
    scratch = work / "tmp"
    scratch.mkdir()
    tempfile.tempdir = str(scratch)
    for seed in seeds:
        for file, data in seed.files.items():
            (work / seed.kind / file).parent.mkdir(parents=True, exist_ok=True)
            (work / seed.kind / file).write_bytes(data)
        outcome(work / seed.kind / seed.name, sum(map(len, seed.files.values())), False)
    warnings.simplefilter("always")
    watch = Watch(scratch)
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    gc.collect()
    gc.freeze()
    counts: Counter[str] = Counter()
    for number in numbers:
        os.pwrite(log, b"%20d" % number, 0)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # the signals are not handled: they end the process
        signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)
        seed, file, data = damaged(seeds, number)
        path = work / seed.kind / file
        with changed(path, data):
            stored = sum(map(len, seed.files.values())) - len(seed.files[file]) + len(data)
            problems = []
            watch.active = True
            try:
                result = outcome(work / seed.kind / seed.name, stored, asks_for_averages(number, path))
            except Exception:
                problems.append(traceback.format_exc())
            watch.active = False
            problems += watch.problems()
        if problems:
            print(f"--- case {number}: {seed.kind}, {file}\n" + "\n".join(problems)[-4000:], flush=True)
            result = "wrong"
        counts[result] += 1
        counts[f"{seed.kind}: {result}"] += 1
    return counts


@contextlib.contextmanager
def changed(path: Path, data: bytes) -> Iterator[None]:
    """Another content for a file; a new file, because the old one may still be mapped."""
    kept = path.with_name("kept")
    path.rename(kept)
    path.write_bytes(data)
    try:
        yield
    finally:
        kept.replace(path)


def fuzz(seeds: Path, first: int, count: int, workers: int) -> tuple[Counter[str], list[str]]:
    """Runs cases in several processes.

    Returns:
        How often each outcome occurred, and descriptions of everything that went wrong, with the number of the case.
    """
    counts: Counter[str] = Counter()
    failures: list[str] = []
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        running = []
        for worker in range(workers):
            work = Path(folder, str(worker))
            work.mkdir()
            options = ["--seeds", seeds, "--work", work, "--first", first + worker, "--step", workers]
            command = [sys.executable, "-m", __spec__.name, *map(str, options), "--end", str(first + count)]
            with open(work / "out", "wb") as out:
                process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
            running.append((process, work))
        for process, work in running:
            code = process.wait()
            lines = (work / "out").read_text(errors="replace").splitlines()
            if code == 0:
                counts.update(json.loads(lines.pop()))
            else:
                number = (work / "number").read_text() if (work / "number").exists() else "before the first"
                failures.append(f"the process died with {code} at case {number.strip()}")
            if lines:
                failures.append("\n".join(lines))
    return counts, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("number", type=int, nargs="?", help="run this case and leave its file")
    parser.add_argument("--seeds", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--end", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sys.stdout.reconfigure(errors="backslashreplace")
    if options.number is not None:
        folder = Path(tempfile.mkdtemp(prefix="fuzzing-"))
        write_seeds(folder / "seeds")
        seeds = read_seeds(folder / "seeds")
        seed, file, data = damaged(seeds, options.number)
        path = folder / "seeds" / seed.kind / file
        path.write_bytes(data)
        print(f"case {options.number}: {seed.kind}; damaged: {path}", flush=True)
        print(outcome(folder / "seeds" / seed.kind / seed.name, 0, asks_for_averages(options.number, path)))
        return
    log = os.open(options.work / "number", os.O_CREAT | os.O_RDWR)
    counts = run(read_seeds(options.seeds), range(options.first, options.end, options.step), options.work, log)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
