"""What interfaces of layer fusion cost as models and layers grow: parameters, time and memory.

    python benchmarks/fusion.py [--modes hconv,ws] [--models 1,2,3] [--layers 6,12,24] [--dim 768] [--seconds 10]
                                [--repeats 5] [--device cuda]

Random hidden states of 50 Hz, one utterance, float32; encoders are not part of it. Every figure comes from a process of
its own, forked from one that has loaded torch. On the CPU, one thread: milliseconds of CPU time per second of audio,
and the growth of the peak of resident memory over what inputs and weights take, for the whole utterance. On a GPU:
milliseconds between synchronisations, and the growth of the peak of allocated memory. Times are the median of the
repeats after one that does not count; noise is half the range of the repeats as a share of the median.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import torch
from measure import machine

from nemo_merge.fusion import UpstreamFusion
from nemo_merge.fusion.upstream_fusion import MODES
from nemo_merge.reporting.markdown import table

RATE = 50
_M_MMAP_THRESHOLD = -3


class Case(NamedTuple):
    """What is measured."""

    mode: str
    models: int
    layers: int
    dim: int
    seconds: float
    device: str
    backward: bool


class Cost(NamedTuple):
    """Parameters, seconds of every repeat, and bytes by which memory grew."""

    parameters: int
    seconds: list[float]
    memory: int


def cost(case: Case, repeats: int) -> Cost:
    """Measures one case in this process: memory without repeats, time with them."""
    torch.set_num_threads(1)
    if not repeats and case.device == "cpu":
        # Tensors are mapped and given back, so that none finds its place in what another has left. That takes time.
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 12)
    torch.manual_seed(0)
    shape = {"num_layers": case.layers, "dim": case.dim, "frame_shift": 1 / RATE}
    fusion = UpstreamFusion([shape] * case.models, case.mode, case.dim).to(case.device).train(case.backward)
    features = [
        [torch.randn(1, case.dim, round(case.seconds * RATE), device=case.device) for _ in range(case.layers)]
        for _ in range(case.models)
    ]

    def run(frames: int) -> None:
        lengths = [torch.tensor([frames], device=case.device)] * case.models
        with torch.set_grad_enabled(case.backward):
            output, _ = fusion([[layer[..., :frames] for layer in model] for model in features], lengths)
            if case.backward:
                output.sum().backward()
        fusion.zero_grad()

    run(2)  # loads the code
    wait, clock = (
        (lambda: None, time.process_time) if case.device == "cpu" else (torch.cuda.synchronize, time.perf_counter)
    )
    before = memory(case.device)
    run(features[0][0].shape[2])
    grown, seconds = memory(case.device, peak=True) - before, []
    for _ in range(repeats):
        wait()
        started = clock()
        run(features[0][0].shape[2])
        wait()
        seconds.append(clock() - started)
    return Cost(sum(item.numel() for item in fusion.parameters()), seconds, grown)


def memory(device: str, peak: bool = False) -> int:
    """Bytes in use now, from where the peak is counted then, or that peak."""
    if device != "cpu":
        if peak:
            return torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if not peak:
        Path("/proc/self/clear_refs").write_text("5")
    field = "VmHWM" if peak else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    """Measures all cases and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def numbers(text: str) -> list[int]:
        return [int(item) for item in text.split(",")]

    parser.add_argument("--modes", type=lambda text: text.split(","), default=list(MODES))
    parser.add_argument("--models", type=numbers, default=[1, 2, 3])
    parser.add_argument("--layers", type=numbers, default=[6, 12, 24])
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    print(f"{machine()}; {arguments.device}; {arguments.seconds:g} s of audio, width {arguments.dim}\n")
    header = ["mode", "models", "layers", "parameters, M", "forward, ms/s", "+ backward", "forward, MB", "+ backward"]
    print(table(header, []))
    noise, fork = [], multiprocessing.get_context("fork")
    settings = (arguments.dim, arguments.seconds, arguments.device)
    for mode, models, layers in itertools.product(arguments.modes, arguments.models, arguments.layers):
        found = []
        for repeats, backward in itertools.product((arguments.repeats, 0), (False, True)):
            with fork.Pool(1) as pool:
                found.append(pool.apply(cost, (Case(mode, models, layers, *settings, backward), repeats)))
        cells = [f"`{mode}`", str(models), str(layers), f"{found[0].parameters / 1e6:.2f}"]
        for item in found[:2]:
            median = statistics.median(item.seconds)
            noise.append((max(item.seconds) - min(item.seconds)) / 2 / median)
            cells.append(f"{1000 * median / arguments.seconds:.2f}")
        cells += [f"{item.memory / 1e6:.1f}" for item in found[2:]]
        print(table(cells, []).splitlines()[0], flush=True)
    print(f"\nnoise: median {100 * statistics.median(noise):.0f} %, at most {100 * max(noise):.0f} %")


if __name__ == "__main__":
    main()
