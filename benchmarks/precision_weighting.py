"""Error of merged Bayesian LoRA adapters where the truth is known: precision-weighted merging against the others.

    python benchmarks/precision_weighting.py [--experts 3] [--rank 4] [--draws 20]

A base layer lacks a change of low rank. Every expert sees noisy outputs of the changed layer, for inputs of which each
expert hears its own share loudly and the others faintly, and learns A exactly: with B fixed, the mean-field posterior
of A that minimises the negative ELBO (KL to the prior N(0, p^2)) is known in closed form. Every expert has its own B, a
basis of the same space turned at random, so that factors of different experts mean different things. "Same inputs" is
the case in which all experts are equally sure of everything.

Printed is the error of the merged change relative to the true one, ``|M - D|_F / |D|_F``, as mean over draws.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemo_merge.adapters import merge_adapters

ROWS, COLUMNS, FRAMES, NOISE, PRIOR = 48, 60, 200, 0.3, 0.5
LOUD, FAINT = 1.0, 0.03
METHODS = {
    "soup": ("soup", {}),
    "task_arithmetic, scale 1": ("task_arithmetic", {"scale": 1.0}),
    "ties": ("ties", {}),
    "boosted_tsvm": ("boosted_tsvm", {}),
    "precision_weighted": ("precision_weighted", {}),
    "precision_weighted, prior_correction": ("precision_weighted", {"prior_correction": True}),
}


def posterior(inputs: Tensor, outputs: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of A in ``outputs = inputs (B A)' + noise``, B with orthonormal columns."""
    precision = inputs.mT @ inputs / NOISE**2 + torch.eye(COLUMNS).double() / PRIOR**2
    mean = torch.linalg.solve(precision, inputs.mT @ outputs @ b / NOISE**2).mT
    return mean, precision.diagonal().rsqrt().expand_as(mean)


def adapter(folder: Path, mean: Tensor, sigma: Tensor, b: Tensor) -> Path:
    """A folder of Bayesian LoRA without a spread of B."""
    folder.mkdir()
    tensors = {"lora_A.weight": mean, "lora_B.weight": b, "lora_rho_A": sigma.expm1().log()}
    stored = {f"layer.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file(stored, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": b.shape[1], "lora_alpha": b.shape[1]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "bayesian_lora.json").write_text(json.dumps({"prior_scale": PRIOR}))
    return folder


def errors(seed: int, experts: int, rank: int, own: bool) -> dict[str, float]:
    """Relative error of every method for one draw; ``own``: every expert hears its own share of the inputs."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    space = torch.linalg.qr(normal(ROWS, rank))[0]
    truth = PRIOR * space @ normal(rank, COLUMNS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file({"layer.weight": torch.zeros(ROWS, COLUMNS).double()}, folder / "base.safetensors")
        adapters = []
        for expert in range(experts):
            loudness = torch.full((COLUMNS,), FAINT if own else LOUD, dtype=torch.float64)
            if own:
                loudness[expert * COLUMNS // experts : (expert + 1) * COLUMNS // experts] = LOUD
            inputs = normal(FRAMES, COLUMNS) * loudness
            b = space @ torch.linalg.qr(normal(rank, rank))[0]
            mean, sigma = posterior(inputs, inputs @ truth.mT + NOISE * normal(FRAMES, ROWS), b)
            adapters.append(adapter(folder / str(expert), mean, sigma, b))
        found = {}
        for label, (method, parameters) in METHODS.items():
            output = folder / "merged.safetensors"
            options = {"output": output, "dense": True, "overwrite": True, **parameters}
            merge_adapters(folder / "base.safetensors", adapters, method, **options)
            found[label] = float((load_file(output)["layer.weight"] - truth).norm() / truth.norm())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--draws", type=int, default=20)
    arguments = parser.parse_args()
    columns = []
    for own in (True, False):
        some = [errors(seed, arguments.experts, arguments.rank, own) for seed in range(arguments.draws)]
        columns.append({label: sum(draw[label] for draw in some) / len(some) for label in METHODS})
    print(f"{'method':38} {'own inputs':>11} {'same inputs':>12}")
    for label in METHODS:
        print(f"{label:38} {columns[0][label]:11.3f} {columns[1][label]:12.3f}")


if __name__ == "__main__":
    main()
