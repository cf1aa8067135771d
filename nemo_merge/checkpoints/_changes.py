"""What an adapter does to one tensor of its base, as PEFT defines it for each type of adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..low_rank import LowRank
from ..posterior import Posterior, lora_posterior


@dataclass(frozen=True)
class Change:
    """The change of one tensor.

    Attributes:
        kind: ``linear``, ``transposed``, ``conv`` or ``embedding`` where it is plain LoRA of such a layer, else
            ``dora``, ``ia3``, ``bias`` or ``full``.
        apply: makes the changed tensor of the base's, in float64.
        factors: gives the change as factors; None where it is not of low rank.
        posterior: gives the variances of its entries; None where the adapter does not hold them.
    """

    kind: str
    apply: Callable[[Tensor], Tensor]
    factors: Callable[[], LowRank] | None = None
    posterior: Callable[[], Posterior] | None = None


@dataclass(frozen=True)
class Spread:
    """What Bayesian LoRA says of a module beside its means.

    Attributes:
        rho_a: ``lora_rho_A``, shaped like ``lora_A``; the standard deviation is its softplus.
        rho_b: ``lora_rho_B``, or None where B has no spread.
        prior_scale: standard deviation of the prior, if the adapter says it.
    """

    rho_a: Tensor
    rho_b: Tensor | None
    prior_scale: float | None


def lora(kind: str, a: Tensor, b: Tensor, scaling: float, spread: Spread | None = None) -> Change:
    """``W + scaling * B A``; for convolutions, B and A as matrices [out, r] and [r, in * kernel].

    Args:
        kind: ``linear``; ``transposed`` for a linear layer that stores [in, out] and ``embedding`` for [tokens, width],
            both of which take the transposed product; or ``conv``.
        a: ``lora_A``, [r, in] or [r, in, *kernel], or ``lora_embedding_A``, [r, tokens].
        b: ``lora_B``, [out, r] or [out, r, 1 ...], or ``lora_embedding_B``, [width, r].
        scaling: the factor.
        spread: of Bayesian LoRA, whose means a and b are.
    """
    transposed = kind in ("transposed", "embedding")

    def factors() -> LowRank:
        product = LowRank(b.double().flatten(1) * scaling, a.double().flatten(1))
        return product.mT if transposed else product

    def apply(base: Tensor) -> Tensor:
        return base.double() + factors().to(base.device).rows().view(base.shape)

    def posterior() -> Posterior:
        assert spread is not None
        rho_b = None if spread.rho_b is None else spread.rho_b.flatten(1)
        found = lora_posterior(a.flatten(1), b.flatten(1), spread.rho_a.flatten(1), rho_b, scaling, spread.prior_scale)
        return found.mT if transposed else found

    return Change(kind, apply, factors, None if spread is None else posterior)


def dora(plain: Change, magnitude: Float[Tensor, "..."]) -> Change:
    """``m * (W + dW) / |W + dW|`` for every output, with the magnitude m (Liu et al., 2024, arXiv 2402.09353)."""
    output = 1 if plain.kind in ("transposed", "embedding") else 0

    def apply(base: Tensor) -> Tensor:
        moved = plain.apply(base)
        others = [axis for axis in range(moved.dim()) if axis != output]
        norms = torch.linalg.vector_norm(moved, dim=others, keepdim=True)
        factor = magnitude.to(moved).view(norms.shape) / torch.where(norms > 0, norms, 1)
        return moved.mul_(factor)

    return Change("dora", apply)


def ia3(vector: Float[Tensor, "..."], axis: int) -> Change:
    """Multiplies what belongs to every output (axis 0) or input (axis 1) by an entry of the vector."""

    def apply(base: Tensor) -> Tensor:
        shape = [-1 if place == axis else 1 for place in range(base.dim())]
        return base.double() * vector.to(base.device).double().view(shape)

    return Change("ia3", apply)


def added_bias(vector: Float[Tensor, " out"], scaling: float) -> Change:
    """``b + scaling * lora_B.bias``."""
    return Change("bias", lambda base: base.double() + scaling * vector.to(base.device).double())


def replaced(tensor: Tensor) -> Change:
    """Another tensor in the base's place (``modules_to_save``, trained biases)."""
    return Change("full", lambda base: tensor.to(base.device).double())
