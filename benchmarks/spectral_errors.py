"""Errors of spectral methods against LAPACK's SVD in float64, on task vectors like those of ``whisper_inputs.py``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nemo_merge import methods
from nemo_merge.methods import TaskVectors

EXPERTS = 4
SHAPES = ((768, 768), (768, 3072), (3072, 768))


def task_vectors(rows: int, columns: int) -> list[Tensor]:
    """Changes of four experts: 15 % common and 45 % own low-rank directions, 40 % noise."""
    common = torch.randn(rows, 8) @ torch.randn(8, columns)
    own = [torch.randn(rows, 16) @ torch.randn(16, columns) for _ in range(EXPERTS)]
    return [1e-3 * (0.14 * common + 0.17 * part + 0.63 * torch.randn(rows, columns)) for part in own]


def errors() -> Iterator[tuple[str, tuple[int, int], float, float]]:
    """For every method and shape the relative error of the formula by SVD in float32, and of this package."""
    torch.manual_seed(0)
    for shape in SHAPES:
        deltas = task_vectors(*shape)
        for name, by_svd in (("tsvm", tsvm), ("iso_c", iso_c), ("iso_cts", iso_cts)):
            exact = by_svd([delta.double() for delta in deltas])
            single = by_svd(deltas)
            settings = {"orthogonalizer": "gram_polar"} if name == "tsvm" else {}
            method = methods.get(name, **settings)
            assert isinstance(method, methods.SpectralMethod)
            own = method.combine_matrix(TaskVectors(torch.zeros_like(deltas[0]), deltas, torch.ones(EXPERTS)))
            size = exact.norm()
            yield name, shape, float((single - exact).norm() / size), float((own - exact).norm() / size)


def polar(matrix: Tensor) -> Tensor:
    """All singular values at 1."""
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vt


def tsvm(deltas: Sequence[Tensor]) -> Tensor:
    """TSV-M as its paper has it."""
    rank = min(deltas[0].shape) // len(deltas)
    parts = [torch.linalg.svd(delta, full_matrices=False) for delta in deltas]
    u, vt = torch.cat([part[0][:, :rank] for part in parts], 1), torch.cat([part[2][:rank] for part in parts])
    return (polar(u) * torch.cat([part[1][:rank] for part in parts])) @ polar(vt)


def iso_c(deltas: Sequence[Tensor]) -> Tensor:
    """Iso-C as its paper has it."""
    u, s, vt = torch.linalg.svd(sum(deltas[1:], deltas[0]), full_matrices=False)
    return s.mean() * (u @ vt)


def iso_cts(deltas: Sequence[Tensor], fraction: float = 0.8) -> Tensor:
    """Iso-CTS as its paper has it."""
    short = min(deltas[0].shape)
    own = round((short - int(fraction * short)) / len(deltas))
    common = short - own * len(deltas)
    u, s, vt = torch.linalg.svd(sum(deltas[1:], deltas[0]), full_matrices=False)
    u, s, vt = u[:, :common], s[:common], vt[:common]
    left = [torch.linalg.svd(delta - u @ (u.mT @ delta), full_matrices=False) for delta in deltas]
    levels = torch.cat([*(part[1][:own] for part in left), s])
    return levels.mean() * (
        polar(torch.cat([*(part[0][:, :own] for part in left), u], 1))
        @ polar(torch.cat([*(part[2][:own] for part in left), vt]))
    )
