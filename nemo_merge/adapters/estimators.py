r"""Outputs of a linear layer whose weights are drawn from a Gaussian: ``y = theta x``, ``theta ~ N(mean, sigma^2)``.

All estimators give every single output the same mean ``mean x`` and variance ``sigma^2 x^2`` (elementwise). They
differ in what the outputs of one batch share: ``direct`` draws one matrix for all of them, ``flipout`` (Wen et al.,
2018, arXiv 1803.04386) gives each frame its own signs, ``flipout_utterance`` each utterance, and ``lrt``, the local
reparameterisation trick (Kingma et al., 2015, arXiv 1506.02557), draws every output by itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

Inputs = Float[Tensor, "*batch inputs"]
Weights = Float[Tensor, "outputs inputs"]
Outputs = Float[Tensor, "*batch outputs"]


def direct(x: Inputs, mean: Weights, sigma: Weights) -> Outputs:
    """One matrix for the whole batch (Bayes by Backprop, Blundell et al., 2015, arXiv 1505.05424)."""
    return linear(x, mean + sigma * torch.randn_like(sigma))


def flipout(x: Inputs, mean: Weights, sigma: Weights) -> Outputs:
    """One matrix of noise, with signs of its own for every frame."""
    return _flipout(x, mean, sigma, x.shape[:-1])


def flipout_utterance(x: Inputs, mean: Weights, sigma: Weights) -> Outputs:
    """One matrix of noise, with signs of its own for every utterance: the first dimension of ``x``.

    All frames of an utterance see the same weights, as they do in a model that is drawn once.
    """
    return _flipout(x, mean, sigma, (x.shape[0], *(1 for _ in x.shape[1:-1])))


def lrt(x: Inputs, mean: Weights, sigma: Weights) -> Outputs:
    """Every output drawn from its own marginal."""
    # In 16 bits the squares underflow; 1e-8 keeps the root differentiable where x is zero (padding).
    with torch.autocast(x.device.type, enabled=False):
        variance = linear(x.to(sigma.dtype).square(), sigma.square())
        deviation = (variance + 1e-8).sqrt()
    outputs = linear(x, mean)
    return outputs + deviation * torch.randn_like(deviation)


def _flipout(x: Inputs, mean: Weights, sigma: Weights, batch: tuple[int, ...]) -> Outputs:
    noise = sigma * torch.randn_like(sigma)
    outputs = linear(x, mean)
    turned = linear(x * _signs(x, (*batch, x.shape[-1])), noise)
    return outputs + turned * _signs(outputs, (*batch, outputs.shape[-1]))


def _signs(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(0.5).mul_(2).sub_(1)


ESTIMATORS: dict[str, Callable[[Inputs, Weights, Weights], Outputs]] = {
    "direct": direct,
    "flipout": flipout,
    "flipout_utterance": flipout_utterance,
    "lrt": lrt,
}
