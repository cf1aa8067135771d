"""Precision-weighted merging: every entry counts as much as its expert is sure of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError
from ._blocks import Block, Blocks, per_expert
from ._method import Method
from ._parameters import parameter
from ._registry import register


@register
@dataclass(frozen=True)
class PrecisionWeighted(Method):
    """Mean of the task vectors, entry by entry, weighted by the inverse of their posterior variances.

    ``delta = sum_t w_t d_t / v_t / sum_t w_t / v_t``: the product of the experts' Gaussian posteriors, which equal
    variances turn into the mean. With variances of 1 / (Fisher information) it is Fisher-weighted averaging (Matena and
    Raffel, 2022, arXiv 2111.09832, section 2). The experts are adapters of Bayesian LoRA (Ugan et al., 2025,
    arXiv 2510.18723), whose variances of ``s B A`` are exact: ``v = s^2 [B^2 sA^2 + sB^2 A^2 + sB^2 sA^2]``, squares
    entry by entry. It is done on ``s B A``, not on A and B, which adapters of separate trainings do not share.

    An expert says nothing of a tensor that it does not adapt, nor of entries with neither a change nor a variance (as
    where B was never moved and has no spread): it is left out there. ``floor`` keeps a variance from being far below
    those of the expert's other entries. Variances of zero beyond that are certainty: such experts alone decide.

    ``prior_correction`` counts the prior p, which each posterior holds, once instead of T times: the precision becomes
    ``sum_t w_t / v_t - (1 - 1 / W) sum_t w_t / max(p_t, v_t)`` with W the sum of the weights, for equal weights and
    priors ``sum_t 1 / v_t - (T - 1) / p``. The maximum keeps it positive where a posterior is wider than its prior:
    delta lies between the mean (posteriors far narrower than the prior) and the sum of the task vectors.
    """

    name: ClassVar[str] = "precision_weighted"
    family: ClassVar[str] = "task vectors"
    source: ClassVar[str] = "Matena and Raffel, 2022, arXiv 2111.09832; Ugan et al., 2025, arXiv 2510.18723"

    floor: float = parameter(
        0.01, "Least variance of an entry, as a share of the mean over the expert's tensor.", low=0, high=1
    )
    prior_correction: bool = parameter(False, "Count the experts' prior once, not once per expert.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is not None and (min(self.weights, default=0) < 0 or not any(self.weights)):
            raise ConfigError(
                f"{self.name}: weights={list(self.weights)} must be 0 or more, and not all 0: they multiply precisions"
            )

    @property
    def uses_posteriors(self) -> bool:
        return True

    @property
    def uses_priors(self) -> bool:
        return self.prior_correction

    def statistics(self, blocks: Blocks, weights: Float[Tensor, " experts"]) -> Tensor | None:
        """The least variance of every expert."""
        if not self.floor:
            return None
        total, count = torch.zeros(2, len(weights), dtype=torch.float64)
        for block in blocks:
            variances = block.variances.flatten(1)
            known = variances.isfinite()
            total += variances.where(known, 0).sum(1, dtype=torch.float64).cpu()
            count += known.sum(1).cpu()
        return self.floor * total / count.clamp_min(1)

    def combine_block(
        self, block: Block, weights: Float[Tensor, " experts"], statistics: Tensor | None
    ) -> Float[Tensor, "*shape"]:
        priors = block.prior_variances if self.prior_correction else None
        return product_of_posteriors(block.deltas, block.variances, weights, priors=priors, least=statistics)[0]


def product_of_posteriors(
    means: Float[Tensor, "experts *shape"],
    variances: Float[Tensor, "experts *shape"],
    weights: Float[Tensor, " experts"],
    *,
    priors: Float[Tensor, "experts *shape"] | None = None,
    least: Float[Tensor, " experts"] | None = None,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Mean and variance of the product of Gaussians, entry by entry; see :class:`PrecisionWeighted`.

    Args:
        means: of every expert.
        variances: of every expert, 0 or more; infinite where it says nothing.
        weights: the power that every expert's Gaussian is raised to, 0 or more.
        priors: variances of the prior that every expert's posterior holds, to be counted once; by default not at all.
        least: the least variance of every expert.

    Returns:
        Mean and variance; where no expert says anything, 0 and infinity.
    """
    weights = per_expert(weights, means)
    known = variances.isfinite() & ((variances > 0) | (means != 0)) & (weights > 0)
    if least is not None:
        variances = torch.maximum(variances, per_expert(least, means))
    smallest = variances.where(known, torch.inf).amin(0)

    def precision(of: Tensor) -> Tensor:
        """Relative to the largest one, so that nothing overflows; times the weight."""
        return torch.where(known, weights * torch.where(of == smallest, 1, smallest / of), 0)

    own = precision(variances)
    total = own.sum(0)
    if priors is not None:
        held = precision(torch.maximum(priors, variances)).sum(0)
        count = (weights * known).sum(0)
        total = total - (1 - 1 / torch.where(count > 0, count, 1)) * held
    safe = torch.where(total > 0, total, 1)
    return (own * means).sum(0) / safe, smallest / safe
