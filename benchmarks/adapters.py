"""CPU time of merging adapters in the space that they span, against merging the models that they make.

    python benchmarks/adapters.py [--experts 10] [--rank 16] [--methods tsvm,iso_c] [--repeats 1]

One matrix of Whisper large (1280x1280, 5120x1280) by every method that is rotation-equivariant, in memory, one thread:
from base and adapters in float32 to the merged matrix, each way by the engine itself. The base of whole models is
float64, so that both ways compute the same and their difference can be shown, relative to the change of the matrix.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from nemo_merge import methods
from nemo_merge.checkpoints import AdapterCheckpoint, Checkpoint, StateDictCheckpoint
from nemo_merge.merging import execute, plan_merge

SHAPES = ((1280, 1280), (5120, 1280))
MODULE = "layers.0.linear"


def adapter(folder: Path, shape: tuple[int, int], rank: int, generator: torch.Generator) -> AdapterCheckpoint:
    """A LoRA adapter of one matrix with random factors."""
    b, a = torch.randn(shape[0], rank, generator=generator), torch.randn(rank, shape[1], generator=generator)
    folder.mkdir()
    save_file({f"{MODULE}.lora_B.weight": 1e-3 * b, f"{MODULE}.lora_A.weight": a}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return AdapterCheckpoint(folder)


def merged(base: Checkpoint, experts: Sequence[Checkpoint], method: methods.Method) -> torch.Tensor:
    """The matrix that a merge gives."""
    plan = plan_merge(base, experts, method, workers=1)
    writer = plan.template.writer(Path(), plan.output_specs, {})
    execute(plan, writer, workers=1)
    writer.commit()
    return writer.state_dict[f"{MODULE}.weight"]


def timed(function: Callable[[], torch.Tensor], repeats: int) -> tuple[float, torch.Tensor]:
    """Least CPU seconds, and the result."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        result = function()
        seconds.append(time.process_time() - started)
    return min(seconds), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    equivariant = [name for name in methods.names() if methods.get(name).rotation_equivariant]
    parser.add_argument("--experts", type=int, default=10)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--methods", type=lambda text: text.split(","), default=equivariant)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{arguments.experts} adapters of rank {arguments.rank}, CPU seconds including the plan")
    print(f"{'method':16} {'shape':>10} {'factors':>9} {'dense':>9} {'ratio':>7} {'difference':>11}")
    for shape in SHAPES:
        generator = torch.Generator().manual_seed(0)
        weights = 0.05 * torch.randn(shape, generator=generator)
        base = StateDictCheckpoint({f"{MODULE}.weight": weights.double()}, "base")
        with tempfile.TemporaryDirectory() as folder:
            adapters = [
                adapter(Path(folder, str(index)), shape, arguments.rank, generator).bind(base)
                for index in range(arguments.experts)
            ]
            dense = [StateDictCheckpoint(dict(expert.items()), f"expert {i}") for i, expert in enumerate(adapters)]
            for name in arguments.methods:
                method = methods.get(name)
                count = method.maximum_experts or arguments.experts
                fast, a = timed(lambda: merged(base, adapters[:count], method), arguments.repeats)  # noqa: B023
                slow, b = timed(lambda: merged(base, dense[:count], method), arguments.repeats)  # noqa: B023
                change = torch.linalg.norm(b - weights.double())
                size = f"{shape[0]}x{shape[1]}"
                error = torch.linalg.norm(a - b) / change
                print(
                    f"{name:16} {size:>10} {fast:9.3f} {slow:9.3f} {slow / fast:6.0f}x {float(error):11.0e}", flush=True
                )


if __name__ == "__main__":
    main()
