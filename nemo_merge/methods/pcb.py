"""PCB-Merging: experts compete for every entry; losers and weak entries get nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ._blocks import Block, Blocks, per_expert
from ._method import Method
from ._parameters import parameter
from ._registry import register
from ._selection import quantiles, selections, share_of

_CLIPPED = 1e-4  # share of entries clipped at either end, as in the authors' stand-alone script


class _Products(NamedTuple):
    """What the variant of the paper must know of the products ``d_i d_j`` of two experts' task vectors.

    Least and greatest product, the sum of the exponentials of the normalised products, and, for the competition
    within an expert, the sum of the exponentials of T times its normalised squares.
    """

    least: Float[Tensor, "experts experts"]
    greatest: Float[Tensor, "experts experts"]
    sums: Float[Tensor, "experts experts"]
    own: Float[Tensor, " experts"]


class _Statistics(NamedTuple):
    """Per expert: range of magnitudes after clipping, score below which nothing counts, highest score."""

    low: Float[Tensor, " experts"]
    high: Float[Tensor, " experts"]
    products: _Products | None
    threshold: Float[Tensor, " experts"]
    top: Float[Tensor, " experts"]


@register
@dataclass(frozen=True)
class Pcb(Method):
    """Scales every entry by how strong it is within its expert and how well it agrees with the other experts.

    Du et al., 2024, Parameter Competition Balancing, arXiv 2410.02396. The authors' code and paper differ, and
    ``variant`` chooses. With ``d_t = w_t (expert_t - base)``, minmax to [0, 1], T experts and n entries:

    ``code``: ``a_t`` = ``|d_t|`` clipped to its quantiles 1e-4 and 1 - 1e-4; ``intra = exp(T minmax(a_t)^2)``;
    ``inter = tanh(d_t sum_j d_j)``; ``score = intra inter``; ``beta_t`` = minmax of the score raised to its (1 - ratio)
    quantile, so that all entries but the ``ratio`` share of highest score get 0;
    ``delta = sum_t beta_t sign(d_t) a_t / sum_t beta_t``.

    ``paper``: ``intra = softmax(T minmax(d_t^2))`` and ``inter = sum_j softmax(minmax(d_t d_j))`` over the entries;
    the product is kept where it is among the ``ratio`` share of largest;
    ``delta = sum_t beta_t d_t / sum_t beta_t``.

    ``scope=model`` takes all quantiles and ranges over the whole model, as the authors do, in constant memory;
    ``tensor`` over each tensor. Clipping touches ``floor(1e-4 n)`` entries at either end; at least one entry of each
    expert competes, and experts that equal the base do not. The tanh makes ``code`` depend on the size of task vectors,
    but not below 1e-3, where it is linear.

    Differences: where minmax is 0/0 in the authors' code because all scores are at the quantile, entries of the highest
    score count fully if it is positive.
    """

    name: ClassVar[str] = "pcb"
    family: ClassVar[str] = "task vectors"
    source: ClassVar[str] = "Du et al., 2024, arXiv 2410.02396"

    ratio: float = parameter(0.1, "Share of entries of each expert that compete.", low=0, high=1, low_open=True)
    variant: Literal["code", "paper"] = parameter("code", "Formula of the authors' code or of their paper.")
    scope: Literal["tensor", "model"] = parameter("tensor", "What quantiles and ranges are taken over.")

    @property
    def whole_model(self) -> bool:
        return self.scope == "model"

    def statistics(self, blocks: Blocks, weights: Float[Tensor, " experts"]) -> _Statistics:
        experts = len(weights)
        clipped = int(_CLIPPED * blocks.numel)
        ranks = [clipped, blocks.numel - 1 - clipped]
        low, high = quantiles(blocks, lambda block: block.weighted(weights).abs_(), ranks, experts)
        products = _products(blocks, weights) if self.variant == "paper" else None
        found = _Statistics(low, high, products, low, high)

        def scores(block: Block) -> Float[Tensor, "experts *shape"]:
            return self._scores(block.weighted(weights), found)

        # In the authors' code the value at the quantile is itself raised to it, and ends at 0.
        kept = share_of(blocks, self.ratio, experts) + (1 if self.variant == "code" else 0)
        counts = [kept.clamp(1, blocks.numel), torch.ones_like(kept)]
        threshold, top = (item.threshold for item in selections(blocks, scores, counts))
        return found._replace(threshold=threshold, top=top)

    def combine_block(
        self, block: Block, weights: Float[Tensor, " experts"], statistics: _Statistics
    ) -> Float[Tensor, "*shape"]:
        deltas = block.weighted(weights)
        scores = self._scores(deltas, statistics).to(deltas)
        threshold, top = per_expert(statistics.threshold, scores), per_expert(statistics.top, scores)
        if self.variant == "paper":
            shares = torch.where(scores >= threshold, scores, 0)
        else:
            width = top - threshold
            shares = scores.clone() if bool((width <= 0).any()) else scores
            shares.sub_(threshold).clamp_min_(0).div_(torch.where(width > 0, width, 1))
            for expert in (width.flatten() <= 0).nonzero().flatten().tolist():  # all that is left has one score
                shares[expert] = (scores[expert] >= top[expert]) & (scores[expert] > 0)
            sizes = deltas.abs().clamp_(per_expert(statistics.low, deltas), per_expert(statistics.high, deltas))
            deltas = deltas.sign_().mul_(sizes)
        total = shares.sum(0).clamp_min_(torch.finfo(shares.dtype).tiny)
        return deltas.mul_(shares).sum(0).div_(total)

    def _scores(self, deltas: Float[Tensor, "experts *shape"], found: _Statistics) -> Float[Tensor, "experts *shape"]:
        """In float32, the type in which thresholds are found, so that an entry at the threshold is not above it."""
        experts = len(deltas)
        if found.products is None:
            low, high = per_expert(found.low, deltas), per_expert(found.high, deltas)
            intra = _minmax(deltas.abs(), low, high).square_().mul_(experts).exp_()  # minmax clips to the same range
            return (deltas * deltas.sum(0)).tanh_().mul_(intra).float()
        scores = torch.empty_like(deltas)
        for one, delta in enumerate(deltas):
            least, greatest, sums, own = (part.to(deltas.device) for part in found.products)
            intra = (experts * _minmax(delta.square(), least[one, one], greatest[one, one])).exp() / own[one]
            normal = _minmax(deltas * delta, per_expert(least[one], deltas), per_expert(greatest[one], deltas))
            moved = greatest[one, one] > 0  # an expert equal to the base does not compete
            scores[one] = moved * intra * (normal.exp() / per_expert(sums[one], deltas)).sum(0)
        return scores.float()


def _products(blocks: Blocks, weights: Float[Tensor, " experts"]) -> _Products:
    experts = len(weights)
    least, greatest = torch.full((experts, experts), torch.inf), torch.full((experts, experts), -torch.inf)
    for block in blocks:
        deltas = block.weighted(weights).flatten(1)
        for one, delta in enumerate(deltas):
            products = (deltas * delta).float().cpu()
            least[one] = torch.minimum(least[one], products.amin(1))
            greatest[one] = torch.maximum(greatest[one], products.amax(1))
    sums, own = torch.zeros(experts, experts, dtype=torch.float64), torch.zeros(experts, dtype=torch.float64)
    for block in blocks:
        deltas = block.weighted(weights).flatten(1).float().cpu()
        for one, delta in enumerate(deltas):
            normal = _minmax(deltas * delta, least[one][:, None], greatest[one][:, None])
            sums[one] += normal.exp().sum(1, dtype=torch.float64)
            own[one] += (experts * normal[one]).exp().sum(dtype=torch.float64)
    return _Products(least, greatest, sums.float(), own.float())


def _minmax(values: Tensor, least: Tensor, greatest: Tensor) -> Tensor:
    """Values brought to [0, 1]; 0 where all are equal."""
    width = (greatest - least).to(values)
    return (values - least.to(values)).div_(torch.where(width > 0, width, 1)).clamp_(0, 1)
