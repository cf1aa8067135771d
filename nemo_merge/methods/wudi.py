"""WUDI: the task vector that interferes least with each expert's inputs, estimated without data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..linalg import gram
from ._blocks import TaskVectors
from ._method import SpectralMethod
from ._parameters import parameter
from ._registry import register


@register
@dataclass(frozen=True)
class Wudi(SpectralMethod):
    """Minimises ``sum_t |(D - d_t) d_t'|^2 / |d_t|^2``: the rows of a task vector stand in for the inputs it saw.

    Cheng et al., 2025, Whoever Started the Interference Should End It, arXiv 2503.08099; filtered as in OptMerge (Wei
    et al., 2025, arXiv 2505.19892) and its successors. For every matrix, with ``d_t = w_t (expert_t - base)``,
    ``C = sum_t d_t'd_t / |d_t|^2`` and ``B = sum_t d_t d_t'd_t / |d_t|^2``, the minimiser solves ``D C = B``; it is
    RegMean with ``d_t'd_t`` for the input covariance. ``solver``:

    - ``filtered``: solved in the K leading eigendirections of C, the mean task vector elsewhere;
      ``K = ceil((sum_i sqrt(l_i))^2 / sum_i l_i)`` of the eigenvalues l. The exact solution fits small eigendirections
      too closely (82.3 against 85.5 % on CLIP, reported by the authors of the filters);
    - ``closed``: solved in all directions, which lowers the loss most;
    - ``adam``: the authors' 300 Adam steps of 1e-5 from the sum. Its result depends on the size of the task vectors.

    C is computed once, so a step of ``adam`` costs one product of the short kind. Other tensors take the mean.
    """

    name: ClassVar[str] = "wudi"
    source: ClassVar[str] = "Cheng et al., 2025, arXiv 2503.08099; Wei et al., 2025, arXiv 2505.19892"

    solver: Literal["filtered", "closed", "adam"] = parameter("filtered", "How the minimum is approached.")
    learning_rate: float = parameter(1e-5, "Step size of adam.", low=0, low_open=True)
    steps: int = parameter(300, "Number of steps of adam.", low=1)

    @property
    def rotation_equivariant(self) -> bool:
        return self.solver != "adam"  # its steps have a fixed size in every entry

    def factors(self, deltas: TaskVectors) -> Float[Tensor, "rows columns"]:
        target, total = deltas.zeros(), deltas.zeros()
        columns = target.shape[1]
        covariance = target.new_zeros(columns, columns)
        for delta in deltas:
            square = delta.square().sum()
            total += delta
            if square > 0:
                own = gram(delta) / square
                covariance += own
                target += delta @ own
        if not covariance.any():
            return total
        if self.solver == "adam":
            return self._adam(total, covariance, target)
        start = total / len(deltas) if self.solver == "filtered" else total
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        eigenvalues = eigenvalues.clamp_min(0)
        there = eigenvalues > 1e-12 * eigenvalues[-1]
        if self.solver == "filtered":
            eigenvalues = torch.where(there, eigenvalues, 0)
            # The slack keeps rounding from adding a direction where the quotient is a whole number.
            kept = int(torch.ceil(eigenvalues.sqrt().sum().square() / eigenvalues.sum() * (1 - 1e-9)))
            there &= torch.arange(columns, device=there.device) >= columns - kept
        vectors = vectors[:, there]
        return start + ((target @ vectors) / eigenvalues[there] - start @ vectors) @ vectors.mT

    def _adam(self, start: Tensor, covariance: Tensor, target: Tensor) -> Float[Tensor, "rows columns"]:
        solution = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([solution], lr=self.learning_rate)
        for _ in range(self.steps):
            solution.grad = 2 * (solution.detach() @ covariance - target)
            optimizer.step()
        return solution.detach()
