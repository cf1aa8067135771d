"""CPU time and anonymous memory of every method on checkpoints of Whisper small's shape.

    python benchmarks/merge_speed.py [FOLDER] [--methods soup,ties] [--workers 1]

Each merge is a process of its own, ``nemo-merge merge``, so that start-up counts. Anonymous memory is what the process
really needs; mapped input files are page cache, which the system takes back at will. A bare pass, which reads all
inputs and writes one output with numpy, is the floor. Repeats on a quiet machine agree within a few percent.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from whisper_small import make

_BARE_PASS = """
import sys, numpy
total = None
*inputs, output = sys.argv[1:]
maps = [numpy.memmap(f"{path}/model.safetensors", numpy.float32, offset=4096 * 16) for path in inputs]
with open(output, "wb") as file:
    for start in range(0, len(maps[0]), 1 << 20):
        file.write(sum(part[start:start + (1 << 20)] for part in maps))
"""


def measure(command: list[str]) -> tuple[float, float, int]:
    """CPU seconds, wall seconds and peak anonymous bytes of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _anonymous(process.pid))
        time.sleep(0.005)
    wall = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        assert process.stderr is not None
        sys.exit(f"{command}: {process.stderr.read()}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall, peak


def _anonymous(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(tempfile.gettempdir(), "nemo_merge_benchmark"))
    parser.add_argument("--methods", default="soup,task_arithmetic,ties,tsvm,boosted_tsvm")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    base, *experts = map(str, make(arguments.folder, 4))
    output = str(arguments.folder / "merged")
    print(f"{'':<28}{'CPU s':>8}{'wall s':>8}{'anonymous MB':>14}")
    commands = {
        "bare read and write": [sys.executable, "-c", _BARE_PASS, base, *experts, str(arguments.folder / "bare")]
    }
    common = [f"base={base}", f"experts=[{','.join(experts)}]", f"output={output}", "overwrite=true"]
    for method in arguments.methods.split(","):
        settings = [f"method={method}", f"workers={arguments.workers}", *common]
        commands[method] = [sys.executable, "-m", "nemo_merge", "merge", *settings]
    for name, command in commands.items():
        cpu, wall, peak = measure(command)
        print(f"{name:<28}{cpu:8.1f}{wall:8.1f}{peak / 1e6:14.0f}", flush=True)
    (arguments.folder / "bare").unlink()


if __name__ == "__main__":
    main()
