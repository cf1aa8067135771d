"""Compares merges with those of two independent programs, mergekit and fusion_bench (docs/explanation/peers.md).

    python benchmarks/peers.py [--cache FOLDER] [--only mergekit|fusion_bench] [--json FILE]

Each program is installed into an environment of its own, in the cache folder, when it is not there yet (2 GB each).
Both sides merge the same small float32 models, and float64 copies of them: what differs in float64 is another formula,
what differs in float32 alone is rounding. (Models of low rank are in float64 first, and rounded for float32.)
Differences are of the merged change, relative to it (Frobenius norm), the largest over the tensors. A difference above
1e-5 that ``peer_differences.py`` does not explain makes the exit status 1, an environment that cannot be installed 3.
What is merged stands in ``peer_cases.py``; ``peer_sides.py`` is what runs in the environments.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peer_cases import ROWS, STATISTICS, Row, StateDict, family
from peer_differences import ROUNDING, ROUNDING_FACTOR, TOLERANCE, explanation
from safetensors.torch import load_file, save_file

TORCH = "torch==2.13.0"
PEERS = {"mergekit": "mergekit==0.1.5", "fusion_bench": "fusion_bench==0.2.33"}
DEFAULT_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nemo_merge" / "peers"

STATISTICS_TOLERANCE = 0.01
DRAWS = 40


@dataclass
class Difference:
    """What one merge gave; see the module for the unit of the numbers.

    Attributes:
        float32: our result against the peer's, from float32 models.
        float64: the same from float64 models.
        our_rounding: our float32 result against our float64 one.
        peer_rounding: the peer's float32 result against its float64 one.
        floor: our float64 result rounded to float32 against itself.
        case: the inputs, see :func:`family`.
        tensor: where ``float32`` is largest.
        verdict: ``equal``, ``rounding``, ``explained`` or ``unexplained``.
    """

    peer: str
    row: Row
    case: str
    float32: float
    float64: float
    our_rounding: float
    peer_rounding: float
    floor: float
    tensor: str
    verdict: str = ""
    reason: str = ""


@dataclass
class Statistic:
    """Means over draws of a random method, ours first, then the peer's.

    Attributes:
        changed: share of entries that differ from the base.
        norm: norm of the change, relative to that of the mean task vector.
        projection: of the change on the mean task vector, relative to that.
    """

    peer: str
    row: Row
    changed: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    projection: list[float] = field(default_factory=list)
    verdict: str = ""
    reason: str = ""

    @property
    def difference(self) -> float:
        pairs = (self.changed, self.norm, self.projection)
        return max(abs(ours - theirs) / abs(theirs) for ours, theirs in pairs)


def change(merged: Mapping[str, torch.Tensor], base: StateDict) -> StateDict:
    """Merged weights minus base, in float64."""
    return {name: merged[name].double() - base[name].double() for name in base}


def apart(a: StateDict, b: StateDict, references: list[StateDict]) -> tuple[float, str]:
    """The largest relative difference over the tensors, and where it is."""
    largest = []
    for name in a:
        size = max(float(reference[name].norm()) for reference in references)
        largest.append((float((a[name] - b[name]).norm()) / size if size else 0.0, name))
    return max(largest)


def compare(row: Row, peer: str, case: str, theirs: list[StateDict], models: list[StateDict]) -> Difference:
    """Merges with our method, from float32 and from float64, and compares with the peer's two results."""
    from nemo_merge import merge_state_dicts

    base, *experts = models
    mine = []
    for dtype in (torch.float32, torch.float64):
        inputs = [{name: value.to(dtype) for name, value in item.items()} for item in (base, *experts[: row.experts])]
        mine.append(change(merge_state_dicts(inputs[0], inputs[1:], row.method, workers=1, **row.ours), base))
    theirs = [change(item, base) for item in theirs]
    references = [mine[1], theirs[1]]
    rounded = {name: (value + base[name]).float().double() - base[name] for name, value in mine[1].items()}
    single, tensor = apart(mine[0], theirs[0], references)
    result = Difference(
        peer,
        row,
        case,
        float32=single,
        float64=apart(mine[1], theirs[1], references)[0],
        our_rounding=apart(mine[0], mine[1], references)[0],
        peer_rounding=apart(theirs[0], theirs[1], references)[0],
        floor=apart(rounded, mine[1], references)[0],
        tensor=tensor,
    )
    known = explanation(peer, row.label, case)
    largest = max(result.float32, result.float64)
    if largest <= TOLERANCE:
        result.verdict = "equal"
    elif known is not None:
        result.verdict = "explained" if known.covers(result.float32, result.float64) else "unexplained"
        result.reason = known.reason
    elif result.float64 <= TOLERANCE and result.float32 <= ROUNDING_FACTOR * result.floor:
        result.verdict, result.reason = "rounding", ROUNDING
    else:
        result.verdict = "unexplained"
    return result


def compare_statistics(row: Row, peer: str, theirs: list[StateDict], models: list[StateDict]) -> Statistic:
    """Draws with our method as often as the peer did, and compares means."""
    from nemo_merge import merge_state_dicts

    base, *experts = models
    mine = [
        merge_state_dicts(base, experts, row.method, workers=1, seed=seed, **row.ours) for seed in range(len(theirs))
    ]
    mean = torch.cat([sum(expert[name] - base[name] for expert in experts).flatten().double() / 3 for name in base])
    result = Statistic(peer, row)
    for draws in (mine, theirs):
        flat = [torch.cat([value.flatten() for value in change(draw, base).values()]) for draw in draws]
        total = len(flat)
        result.changed.append(sum(float((item != 0).double().mean()) for item in flat) / total)
        result.norm.append(sum(float(item.norm() / mean.norm()) for item in flat) / total)
        result.projection.append(sum(float(item @ mean / mean.square().sum()) for item in flat) / total)
    known = explanation(peer, row.label, "draws")
    if result.difference <= STATISTICS_TOLERANCE:
        result.verdict = "equal"
    else:
        explained = known is not None and result.difference <= known.at_most
        result.verdict, result.reason = "explained" if explained else "unexplained", known.reason if known else ""
    return result


class InstallError(Exception):
    """A peer's environment cannot be made."""


def environment(peer: str, cache: Path) -> Path:
    """The interpreter of a peer's environment, which is made when it is missing.

    Raises:
        InstallError: pip failed, for instance because there is no package registry.
    """
    folder = cache / PEERS[peer].replace("==", "-")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if (folder / "complete").exists():
        return python
    print(f"installing {PEERS[peer]} ...", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    commands = [[sys.executable, "-m", "venv", str(folder)]]
    # torch comes first: the peer's own requirement, which has no version, would bring another build of it.
    for package in (TORCH, PEERS[peer]):
        commands.append([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["no message"]
            raise InstallError(f"{PEERS[peer]} cannot be installed: {errors[-1]}")
    (folder / "complete").touch()
    return python


def run_peer(python: Path, peer: str, folder: Path, requests: list[dict[str, Any]]) -> list[list[StateDict]]:
    """The peer's results: for every request one state dict per draw."""
    (folder / "requests.json").write_text(json.dumps(requests))
    # -I keeps this script's folder and the user's packages out of the peer's environment.
    command = [str(python), "-I", str(Path(__file__).resolve().with_name("peer_sides.py")), peer, str(folder)]
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet)
    if done.returncode:
        sys.exit(f"{peer} failed:\n{done.stderr[-4000:]}")
    results = []
    for request in requests:
        tensors = load_file(folder / request["file"])
        draws: list[StateDict] = [{} for _ in range(request["draws"] or 1)]
        for name, value in tensors.items():
            draw, _, key = name.partition("/")
            draws[int(draw)][key] = value
        results.append(draws)
    return results


def measure(peer: str, python: Path) -> tuple[list[Difference], list[Statistic]]:
    """All merges of one peer."""
    pairs = [(row, case) for row in ROWS[peer] for case in row.cases]
    cases = {case: family(case) for case in {"1e-3", *(case for _, case in pairs)}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case, (base, experts) in cases.items():
            (folder / case).mkdir()
            save_file(base, folder / case / "base.safetensors")
            for index, expert in enumerate(experts):
                save_file(expert, folder / case / f"expert_{index}.safetensors")

        def requests() -> Iterator[dict[str, Any]]:
            for row, case in pairs:
                for dtype in ("float32", "float64"):
                    yield {**asdict(row), "parameters": row.theirs, "case": case, "dtype": dtype, "draws": 0}
            for row in STATISTICS[peer]:
                yield {**asdict(row), "parameters": row.theirs, "case": "1e-3", "dtype": "float32", "draws": DRAWS}

        asked = [{**request, "file": f"{index}.safetensors"} for index, request in enumerate(requests())]
        results = iter(run_peer(python, peer, folder, asked))
    differences = []
    for row, case in pairs:
        base, experts = cases[case]
        differences.append(compare(row, peer, case, [next(results)[0], next(results)[0]], [base, *experts]))
    base, experts = cases["1e-3"]
    statistics = [compare_statistics(row, peer, next(results), [base, *experts]) for row in STATISTICS[peer]]
    return differences, statistics


# Tables


def call(name: str, parameters: Mapping[str, Any]) -> str:
    """A method with its parameters, for a table."""

    def text(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.6g}"
        return f"[{', '.join(map(text, value))}]" if isinstance(value, list) else str(value)

    return f"`{name}({', '.join(f'{key}={text(value)}' for key, value in parameters.items())})`"


def short(number: float) -> str:
    """One digit: ``4e-6``."""
    return f"{number:.0e}".replace("e-0", "e-") if number else "0"


def tables(peer: str, differences: list[Difference], statistics: list[Statistic]) -> str:
    """Both tables of a peer and the explanations that they refer to, as markdown."""
    reasons = list(dict.fromkeys(item.reason for item in (*differences, *statistics) if item.reason))

    def note(item: Difference | Statistic) -> str:
        number = str(reasons.index(item.reason) + 1) if item.reason else ""
        return f"**unexplained** {number}".strip() if item.verdict == "unexplained" else number

    lines = [
        f"| nemo_merge | {peer} | changes | difference | in float64 | our rounding | its rounding | note |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for item in differences:
        numbers = (item.float32, item.float64, item.our_rounding, item.peer_rounding)
        inputs = item.case
        if item.row.experts != 3:
            inputs += f", {item.row.experts} experts"
        if item.row.magnify != 1:
            inputs += f", its inputs {item.row.magnify:.0f}-fold"
        if item.row.zeroed:
            inputs += ", its null vectors zero"
        lines.append(
            f"| {call(item.row.method, item.row.ours)} | {call(item.row.call, item.row.theirs)} | {inputs} | "
            f"{' | '.join(map(short, numbers))} | {note(item)} |"
        )
    lines += ["", f"| nemo_merge | {peer} | entries changed | norm | projection | note |", "|---|---|---|---|---|---|"]
    for item in statistics:
        pairs = (item.changed, item.norm, item.projection)
        lines.append(
            f"| {call(item.row.method, item.row.ours)} | {call(item.row.call, item.row.theirs)} | "
            f"{' | '.join(f'{ours:.3f}, {theirs:.3f}' for ours, theirs in pairs)} | {note(item)} |"
        )
    return "\n".join([*lines, "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of the peers' environments")
    parser.add_argument("--only", choices=PEERS, help="compare with one of them")
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    report: dict[str, Any] = {"torch": torch.__version__}
    unexplained = []
    for peer in [arguments.only] if arguments.only else PEERS:
        try:
            python = environment(peer, arguments.cache)
        except InstallError as error:
            print(error, file=sys.stderr)
            sys.exit(3)
        differences, statistics = measure(peer, python)
        print(f"## {PEERS[peer]}\n\n{tables(peer, differences, statistics)}\n")
        report[peer] = [asdict(item) for item in (*differences, *statistics)]
        unexplained += [item for item in (*differences, *statistics) if item.verdict == "unexplained"]
        for item in differences:
            if item.verdict == "equal" and explanation(peer, item.row.label, item.case):
                print(f"{peer}: {item.row.label} ({item.case}) does not differ any more", file=sys.stderr)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    for item in unexplained:
        print(f"unexplained difference from {item.peer}: {item.row.label}", file=sys.stderr)
    sys.exit(1 if unexplained else 0)


if __name__ == "__main__":
    main()
