"""CPU time and memory of merges, beside mergekit and fusion_bench on the same files (docs/explanation/speed.md).

    python benchmarks/speed.py compare [--methods soup,ties] [--repeats 3]
    python benchmarks/speed.py experts [--methods soup,ties] [--counts 2,4,8,16]
    python benchmarks/speed.py sizes [--methods soup,ties] [--sizes tiny,small,medium]
    python benchmarks/speed.py accuracy

``compare`` merges a base and four experts of Whisper small's shape (float32, 967 MB each), our method and the peer's by
turns, and prints the least CPU seconds of each side with the spread of the repeats, the ratio and the peak of anonymous
memory. Ours runs twice: first with files that it has never seen, then again, when their SHA-256 is remembered. The rows
above the methods are start-up (479 tensors with nothing in them) and a bare pass (``bare_pass.py``).
``experts`` and ``sizes`` show how the cost of a merge grows with the number of experts (the four files are used again)
and with the model, for two experts. ``accuracy`` compares spectral methods with the SVD in float64.

Every merge is a process with one thread per library. Inputs are in the page cache; outputs are synced to the disk where
the program does that. CPU seconds depend on what else the machine does: both sides of a row were measured by turns.
The peers' environments are those of ``peers.py``; files go to ``--folder`` and stay there.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from measure import CommandError, Run, machine, measure
from peers import DEFAULT_CACHE, PEERS, InstallError, environment
from speed_cases import CASES, Case, mend_mergekit, our_command, peer_command
from whisper_inputs import SIZES, make

HEADER = (
    "| merge | peer | peer CPU s | ours, first time | ours, again | peer / ours, first | again | peer MB | our MB |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


class Side:
    """Repeated runs of one command."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.failure = ""

    def run(self, command: list[str], warm: Sequence[Path], clear: Path, cache: Path | None = None) -> None:
        """Runs the command and removes what it wrote; a failure is kept and shown instead of figures."""
        if self.failure:
            return
        try:
            variables = {"XDG_CACHE_HOME": str(cache)} if cache else {}
            self.runs.append(measure(command, warm, variables=variables))
        except CommandError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            self.failure = lines[-1] if lines else "failed"
            print(f"{' '.join(command[:6])} ...: {error}", file=sys.stderr)
        for path in clear.parent.glob(f"{clear.name}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    @property
    def cpu(self) -> float:
        """The least CPU seconds."""
        return min(run.cpu for run in self.runs)

    @property
    def seconds(self) -> str:
        """The least CPU seconds, and how much more the slowest run took."""
        if self.failure or not self.runs:
            return "failed" if self.failure else "-"
        return f"{self.cpu:.1f} (+{max(run.cpu for run in self.runs) - self.cpu:.1f})"

    @property
    def memory(self) -> str:
        """Peak of anonymous megabytes."""
        return f"{max(run.memory for run in self.runs) / 1e6:.0f}" if self.runs else "-"


def compare(arguments: argparse.Namespace) -> None:
    """The table of both sides."""
    chosen = {name: CASES[name] for name in arguments.methods.split(",")} if arguments.methods else CASES
    pythons = _peers({case.peer for case in chosen.values() if case.peer} | {"mergekit"}, arguments.cache)
    empty = make(arguments.folder / "start-up", 4, "start-up")
    models = make(arguments.folder / "small", 4)
    print(f"{HEADER}")
    _row("start-up", CASES["soup"], empty, pythons, arguments)
    for label, options in (("bare pass", []), ("bare pass and SHA-256", ["--sha256"])):
        output, side = arguments.folder / "bare", Side()
        script = str(Path(__file__).with_name("bare_pass.py"))
        for _ in range(arguments.repeats):
            side.run(
                [sys.executable, script, *options, str(output), *map(str, _weights(models))], _weights(models), output
            )
        print(f"| {label} | | | {side.seconds} | | | | | {side.memory} |", flush=True)
    for name, case in chosen.items():
        _row(name, case, models, pythons, arguments)


def _row(
    name: str, case: Case, models: Sequence[Path], pythons: dict[str, Path], arguments: argparse.Namespace
) -> None:
    first, again, theirs, warm = Side(), Side(), Side(), _weights(models)
    output, cache = arguments.folder / "merged", arguments.folder / "cache"
    ours = our_command(case, models, output, arguments.workers)
    for _ in range(arguments.repeats):
        if case.peer in pythons:
            theirs.run(peer_command(case, models, output, pythons[case.peer]), warm, output)
        shutil.rmtree(cache, ignore_errors=True)  # where the SHA-256 of files is remembered
        for side in (first, again):
            side.run(ours, warm, output, cache)
    ratios = [f"{theirs.cpu / side.cpu:.1f}" if theirs.runs and side.runs else "-" for side in (first, again)]
    peer = f"{case.peer} {case.call}" if case.peer else "-"
    label = f"{name} ({case.label})" if name != case.label else name
    print(
        f"| {label} | {peer} | {theirs.seconds} | {first.seconds} | {again.seconds} | {' | '.join(ratios)} | "
        f"{theirs.memory} | {first.memory} |",
        flush=True,
    )


def growth(arguments: argparse.Namespace) -> None:
    """Cost against the number of experts, or against the size of the model."""
    names = arguments.methods.split(",") if arguments.methods else ["soup", "karcher", "ties", "tsvm"]
    print(f"| merge of | {' | '.join(f'{name}: CPU s, MB' for name in names)} |\n|---|{'---|' * len(names)}")
    for label, models in _grown(arguments):
        cells = []
        for name in names:
            side, output = Side(), arguments.folder / "merged"
            for _ in range(arguments.repeats):
                side.run(our_command(CASES[name], models, output, arguments.workers), _weights(models), output)
            cells.append(f"{side.seconds}, {side.memory}")
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


def _grown(arguments: argparse.Namespace) -> Iterator[tuple[str, list[Path]]]:
    if arguments.command == "sizes":
        for size in arguments.sizes.split(","):
            models = make(arguments.folder / size, 2, size)
            parameters = _weights(models)[0].stat().st_size / 4e6
            yield f"{size}, {parameters:.0f} M parameters, 2 experts", models
        return
    base, *experts = make(arguments.folder / "small", 4)
    for count in map(int, arguments.counts.split(",")):
        yield f"small, {count} experts", [base, *(experts[place % 4] for place in range(count))]


def accuracy(arguments: argparse.Namespace) -> None:
    """Error of spectral methods against the SVD in float64, beside that of the SVD in float32."""
    import torch
    from spectral_errors import errors

    torch.set_num_threads(1)
    print("| method | matrix | SVD in float32 | ours |\n|---|---|---|---|")
    for method, shape, single, own in errors():
        print(f"| {method} | {shape[0]} x {shape[1]} | {single:.0e} | {own:.0e} |", flush=True)


def _weights(models: Sequence[Path]) -> list[Path]:
    return [model / "model.safetensors" for model in dict.fromkeys(models)]


def _peers(names: set[str], cache: Path) -> dict[str, Path]:
    """Interpreters of the peers that there are."""
    pythons = {}
    for name in sorted(names):
        try:
            pythons[name] = environment(name, cache)
        except InstallError as error:
            print(error, file=sys.stderr)
            continue
        if name == "mergekit":
            mend_mergekit(pythons[name])
    return pythons


def main() -> None:
    commands: dict[str, Callable[[argparse.Namespace], None]] = {
        "compare": compare, "experts": growth, "sizes": growth, "accuracy": accuracy,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "nemo_merge_benchmark"))
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of the peers' environments")
    parser.add_argument("--methods", help=f"some of {', '.join(CASES)}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--counts", default="2,4,8,16", help="numbers of experts")
    parser.add_argument("--sizes", default="tiny,base,small,medium", help=f"some of {', '.join(SIZES)}")
    arguments = parser.parse_args()
    arguments.folder = arguments.folder.resolve()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    versions = [f"torch {importlib.metadata.version('torch')}", *PEERS.values()]
    print(f"{machine()}; {', '.join(versions)}; load {os.getloadavg()[0]:.1f}; repeats {arguments.repeats}\n")
    commands[arguments.command](arguments)


if __name__ == "__main__":
    main()
