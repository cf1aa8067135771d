"""Stability against plasticity of Bayesian LoRA on a toy task (docs/explanation/bayesian-lora.md).

    python benchmarks/bayesian_lora.py [--seeds 3] [--steps 500]

A network of three linear layers learns to tell ten classes apart (the source). It is adapted, with rank 8, to 400
examples of the same classes in a space that is turned (the target), and then tested on both. LoRA with an L2 penalty in
the loss is the comparison that matters: the penalty pulls the factors as the divergence pulls the means.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nemo_merge.adapters import (
    BayesianLoraConfig,
    diagnose,
    inject_bayesian_lora,
    inject_lora,
    kl_divergence,
    parameter_groups,
)

WIDTH, FEATURES, CLASSES = 64, 24, 10
TARGETS = ["0", "2", "4"]
CONFIG = BayesianLoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=TARGETS)


def draw(count: int, turn: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Examples: class centres, noise, and a turn of the space."""
    centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return (centres[labels] + 1.2 * torch.randn(count, FEATURES, generator=generator)) @ turn, labels


def turned(angle: float) -> Tensor:
    """A rotation by an angle in half of the planes."""
    skew = torch.triu(torch.randn(FEATURES, FEATURES, generator=torch.Generator().manual_seed(5)), 1)
    return torch.matrix_exp(angle * (skew - skew.T) / FEATURES**0.5)


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(FEATURES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)
    )


def train(model: nn.Module, data: tuple[Tensor, Tensor], steps: int, rate: float, penalty: object = None) -> None:
    optimiser = torch.optim.AdamW(parameter_groups(model), lr=rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(data[1]), (64,), generator=generator)
        loss = cross_entropy(model(data[0][chosen]), data[1][chosen])
        if callable(penalty):
            loss = loss + penalty(model)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()


def l2(beta: float) -> object:
    """What is left of the divergence when sigma is a constant: per factor, the mean of mu^2 / (2 prior^2)."""

    def penalty(model: nn.Module) -> Tensor:
        factors = [value for name, value in model.named_parameters() if "lora_" in name]
        return beta * sum((factor / CONFIG.prior_scale).square().mean() / 2 for factor in factors)

    return penalty


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    return float((model(data[0]).argmax(-1) == data[1]).double().mean())


def measure(model: nn.Module, source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> list[float]:
    rows = list(diagnose(model).values())

    def mean(key: str) -> float:
        return sum(row.get(key, 0.0) for row in rows) / len(rows)

    sizes = [mean(key) for key in ("relative_norm", "small_delta", "stable_rank")]
    return [accuracy(model, source), accuracy(model, target), *sizes]


def run(seed: int, steps: int) -> dict[str, list[float]]:
    plain, turn = torch.eye(FEATURES), turned(1.0)
    source, target = draw(4000, plain, 1000 + seed), draw(400, turn, 2000 + seed)
    tests = draw(4000, plain, 3000), draw(4000, turn, 4000)
    base = network(seed)
    train(base, source, 600, 3e-3)
    results = {"base": [accuracy(base, tests[0]), accuracy(base, tests[1])]}
    for name, beta, kind in [
        ("LoRA", 0.0, "l2"),
        *((f"LoRA + L2, {beta:g}", beta, "l2") for beta in (1e-3, 1e-2, 5e-2)),
        *((f"Bayesian, {beta:g}", beta, "kl") for beta in (0.0, 1e-3, 1e-2, 5e-2, 0.5)),
    ]:
        model = copy.deepcopy(base)
        torch.manual_seed(seed)
        if kind == "l2":
            inject_lora(model, r=8, lora_alpha=16, lora_dropout=0.0, target_modules=TARGETS)
            penalty = l2(beta)
        else:
            inject_bayesian_lora(model, replace(CONFIG, beta=beta))

            def penalty(model: nn.Module, beta: float = beta) -> Tensor:
                return beta * kl_divergence(model)

        train(model, target, steps, 3e-3, penalty)
        results[name] = measure(model, *tests)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = [run(seed, arguments.steps) for seed in range(arguments.seeds)]
    print("| | source | target | relative norm | entries below 0.001 | stable rank |\n" + "| --- " * 6 + "|")
    for name in runs[0]:
        values = torch.tensor([result[name] for result in runs]).mean(0).tolist()
        cells = [f"{100 * value:.1f} %" for value in values[:2]]
        cells += [f"{values[2]:.2f}", f"{100 * values[3]:.0f} %", f"{values[4]:.1f}"] if len(values) > 2 else [""] * 3
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
