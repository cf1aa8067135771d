"""Numbers behind four statements of the documentation (docs/explanation/numerics.md).

    python benchmarks/numerics.py

1. How many changes of fine-tuning a 16-bit type rounds away.
2. TSV-M by the Gram matrix in float64 against LAPACK's SVD in float32 and float64: time and error.
3. What a second SVD as orthogonaliser does to four copies of one expert.
4. What BoostedTSV-M makes of the rounding of stored weights when it is taken for content.

One thread; times are CPU seconds, the least of three runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from nemo_merge import methods
from nemo_merge.methods import TaskVectors

EXPERTS = 4


def rounding() -> None:
    """Share of changes of 1e-5 that disappear when weights of 0.05 are stored in 16 bits."""
    base, change = torch.randn(2, 1 << 20) * torch.tensor([[0.05], [1e-5]])
    for dtype in (torch.float16, torch.bfloat16):
        weights = base.to(dtype)
        lost = ((weights.float() + change).to(dtype) == weights).float().mean()
        print(f"changes of 1e-5 on weights of 0.05 that {str(dtype).removeprefix('torch.')} rounds away: {lost:.0%}")


def by_svd(deltas: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """TSV-M with LAPACK's SVD for the triplets and for making them orthogonal, as other tools do it."""
    rank = min(deltas[0].shape) // len(deltas)
    parts = [torch.linalg.svd(delta.to(dtype), full_matrices=False) for delta in deltas]
    u, vt = torch.cat([part[0][:, :rank] for part in parts], 1), torch.cat([part[2][:rank] for part in parts], 0)
    s = torch.cat([part[1][:rank] for part in parts])
    (pu, _, qu), (pv, _, qv) = (torch.linalg.svd(item, full_matrices=False) for item in (u, vt))
    return (pu @ qu * s) @ (pv @ qv)


def by_gram(deltas: list[torch.Tensor]) -> torch.Tensor:
    """TSV-M as this package computes it, with the exact polar factor."""
    method = methods.get("tsvm", orthogonalizer="gram_polar")
    return method.combine_matrix(TaskVectors(torch.zeros_like(deltas[0]), deltas, torch.ones(len(deltas))))


def timed(function: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Least CPU seconds of three runs, and the result."""
    seconds = []
    for _ in range(3):
        started = time.process_time()
        result = function()
        seconds.append(time.process_time() - started)
    return min(seconds), result


def kernels() -> None:
    """Time and error on task vectors like those of benchmarks/whisper_inputs.py."""
    print(
        f"\n{'TSV-M, 4 experts':<18}{'SVD float64':>12}{'SVD float32':>12}{'Gram float64':>13}   errors of the last two"
    )
    for rows, columns in ((768, 768), (768, 3072), (3072, 768)):
        common = torch.randn(rows, 8) @ torch.randn(8, columns)
        deltas = []
        for _ in range(EXPERTS):
            own = torch.randn(rows, 16) @ torch.randn(16, columns)
            deltas.append(1e-3 * (0.14 * common + 0.17 * own + 0.63 * torch.randn(rows, columns)))
        exact_seconds, exact = timed(lambda deltas=deltas: by_svd(deltas, torch.float64))
        single_seconds, single = timed(lambda deltas=deltas: by_svd(deltas, torch.float32))
        gram_seconds, gram = timed(lambda deltas=deltas: by_gram(deltas))
        errors = [float((item - exact).norm() / exact.norm()) for item in (single, gram)]
        seconds = f"{exact_seconds:>10.2f} s{single_seconds:>10.2f} s{gram_seconds:>11.2f} s"
        print(f"{f'{rows} x {columns}':<18}{seconds}   {errors[0]:.0e}, {errors[1]:.0e}")


def copies() -> None:
    """Four copies of one expert, whose merge should be its truncation."""
    delta = torch.randn(256, 256, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(delta)
    truncation = u[:, :64] * s[:64] @ vt[:64]
    for name, merged in (("a second SVD", by_svd([delta] * 4, torch.float64)), ("this package", by_gram([delta] * 4))):
        print(f"four copies of an expert, {name}: {float((merged - truncation).norm() / truncation.norm()):.0%} away")


def low_rank() -> None:
    """Changes of rank 4 and size 1e-5 on weights of 0.05, stored in float32."""
    method = methods.get("boosted_tsvm")
    base, weights = 0.05 * torch.randn(1024, 1024), torch.ones(EXPERTS)
    changes = [0.5e-5 * torch.randn(1024, 4) @ torch.randn(4, 1024) for _ in range(EXPERTS)]
    experts = [base + change for change in changes]
    differences = [expert - base for expert in experts]
    exact = method.combine_matrix(TaskVectors(torch.zeros_like(base), changes, weights)).norm()
    print()
    for label, deltas in (
        ("rounding taken for content", TaskVectors(torch.zeros_like(base), differences, weights)),
        ("this package", TaskVectors(base, experts, weights)),
    ):
        size = float(method.combine_matrix(deltas).norm() / exact)
        print(f"rank-4 changes stored in float32, {label}: {size:.1f} times as large as the exact result")


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rounding()
    kernels()
    print()
    copies()
    low_rank()
