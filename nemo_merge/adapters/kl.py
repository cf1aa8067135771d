r"""The divergence of the posteriors over adapter weights from their prior, and its weight in the loss.

The posterior over each factor is ``N(mu, sigma^2)`` elementwise with ``sigma = softplus(rho)``, the prior is
``N(0, prior_scale^2)`` (Ugan, Pham and Waibel, arXiv 2510.18723, Section 3).
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..errors import ConfigError, did_you_mean
from .loss_terms import log, trainer_of

if TYPE_CHECKING:
    from .bayesian_lora import BayesianLoraConfig

Factor = tuple[Tensor, Tensor | None]
REDUCTIONS = ("per_factor_mean", "global_mean", "elbo", "sum")
SCHEDULES = ("constant", "linear", "cosine")


def gaussian_kl(
    mean: Float[Tensor, "*shape"], rho: Float[Tensor, "*shape"] | None, prior_scale: float
) -> Float[Tensor, "*shape"]:
    """The divergence of ``N(mean, softplus(rho)^2)`` from ``N(0, prior_scale^2)``, entry by entry, in nats.

    Args:
        mean: posterior means.
        rho: what the posterior's standard deviations come from. None stands for a point: only the part that depends on
            the mean is left, ``mean^2 / (2 prior_scale^2)``; the rest is constant, though infinite.
        prior_scale: standard deviation of the prior.
    """
    if rho is None:
        return (mean / prior_scale).square() / 2
    sigma = softplus(rho).clamp_min(torch.finfo(rho.dtype).tiny)
    squares = (sigma / prior_scale).square() + (mean / prior_scale).square()
    return (math.log(prior_scale) - sigma.log()) + (squares - 1) / 2


def kl_divergence(
    model: nn.Module, reduction: str | None = None, tokens: float | None = None, adapter_name: str | None = None
) -> Float[Tensor, ""]:
    """The divergence of a model's adapter posteriors from their prior, over all active Bayesian adapters.

    Args:
        model: a model with Bayesian adapters.
        reduction: ``"per_factor_mean"``, each factor's mean over its entries, summed over factors; ``"global_mean"``,
            the mean over all entries of an adapter; ``"sum"``; or ``"elbo"``, the sum over ``tokens``, which with
            weight 1 makes the loss the negative evidence lower bound per token. By default what the adapter was
            configured with.
        tokens: for ``"elbo"``: how many of the units that the model's loss averages over the training data has: target
            tokens, or utterances where the loss is a mean over utterances (NeMo's ``mean_batch``). By default what the
            adapter was configured with.
        adapter_name: count this adapter only.

    Returns:
        A scalar that gradients flow through; in float32 unless the posteriors are float64.

    Raises:
        ConfigError: no Bayesian adapter is there, an unknown reduction, or ``"elbo"`` without tokens.
    """
    active = _posteriors(model)
    chosen = {name: found for name, found in active.items() if adapter_name in (None, name)}
    if not chosen:
        raise ConfigError(
            f"{type(model).__name__} has no active Bayesian adapter"
            + (f" {adapter_name!r}" if adapter_name else "")
            + "; inject_bayesian_lora() makes one"
        )
    divergences = [_reduce(name, *found, reduction, tokens) for name, found in chosen.items()]
    return torch.stack(divergences).sum()


def beta_at(config: BayesianLoraConfig, step: int) -> float:
    """The weight of the divergence at an optimiser step: ``beta``, or on the way to it from 0.

    Args:
        config: gives ``beta``, ``beta_schedule`` and ``beta_warmup_steps``.
        step: number of optimiser steps done.
    """
    if config.beta_schedule == "constant":
        return config.beta
    share = min(1.0, step / config.beta_warmup_steps)
    return config.beta * (share if config.beta_schedule == "linear" else (1 - math.cos(math.pi * share)) / 2)


class KlTerm:
    """The term ``beta KL`` of the loss of one adapter, for :func:`~nemo_merge.adapters.add_loss_term`.

    The model's loss is a mean, so the term is scaled neither by the size of a batch nor by gradient accumulation.
    """

    def __init__(self, config: BayesianLoraConfig, adapter_name: str) -> None:
        self.config, self.adapter_name = config, adapter_name
        self.name = "kl" if adapter_name == "default" else re.sub(r"\W", "_", f"kl_{adapter_name}")

    def __call__(self, model: Any) -> Float[Tensor, ""]:
        trainer = trainer_of(model)
        beta = beta_at(self.config, trainer.global_step if trainer is not None else self.config.beta_warmup_steps)
        if self.adapter_name not in _posteriors(model):  # another adapter is active
            return torch.zeros(())
        divergence = kl_divergence(model, adapter_name=self.adapter_name)
        log(model, f"{self.name}_divergence", divergence.detach())
        log(model, f"{self.name}_beta", beta)
        # Multiplied even where beta is 0, so that under DDP every parameter has a gradient in every step.
        return beta * divergence


def _reduce(
    name: str, config: BayesianLoraConfig, factors: list[Factor], reduction: str | None, tokens: float | None
) -> Float[Tensor, ""]:
    reduction = reduction or config.kl_reduction
    if reduction not in REDUCTIONS:
        raise ConfigError(f"kl_reduction={reduction!r}{did_you_mean(reduction, REDUCTIONS)}")
    tokens = config.tokens if tokens is None else tokens
    if reduction == "elbo" and (tokens is None or tokens <= 0):
        raise ConfigError(
            f"adapter {name!r}: the reduction 'elbo' needs the number of tokens in the training data; set tokens="
        )
    entries = [gaussian_kl(mean, rho, config.prior_scale) for mean, rho in factors]
    if reduction == "per_factor_mean":
        return torch.stack([factor.mean() for factor in entries]).sum()
    total = torch.stack([factor.sum() for factor in entries]).sum()
    if reduction == "global_mean":
        return total / sum(factor.numel() for factor in entries)
    return total / tokens if reduction == "elbo" and tokens is not None else total


def _posteriors(model: nn.Module) -> dict[str, tuple[BayesianLoraConfig, list[Factor]]]:
    """Settings and factors of the active Bayesian adapters."""
    from .bayesian_layer import bayesian_layers

    found: dict[str, tuple[BayesianLoraConfig, list[Factor]]] = {}
    for _, layer in bayesian_layers(model):
        for name in layer.active_adapters:
            if name in layer.posteriors:
                found.setdefault(name, (layer.posteriors[name], []))[1].extend(layer.factors(name))
    return found
