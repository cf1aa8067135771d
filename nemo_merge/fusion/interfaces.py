"""Interfaces that the hierarchical convolution is compared with: weighted sums, projections, selection, attention."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ConfigError
from .layer_interface import LayerInterface, whole_number


class WeightedSum(LayerInterface):
    """The weighted mean of the layers (SUPERB, Yang et al., 2021, arXiv 2105.01051), one weight per layer.

    It starts as the plain mean. Width and parameters do not grow.

    Args:
        num_layers: see :class:`LayerInterface`, as ``dim`` and ``options``.
        dim: width of the layers and of the result.
        options: see :class:`LayerInterface`.
    """

    def __init__(self, num_layers: int, dim: int, **options: Any) -> None:
        super().__init__(num_layers, dim, **options)
        self.logits = nn.Parameter(torch.zeros(num_layers))
        self.output_dim = dim

    def shared(self) -> tuple[Tensor, ...]:
        return (self.logits.softmax(0),)

    def combine(self, frames: Float[Tensor, "frames dim layers"], *shared: Tensor) -> Float[Tensor, "frames dim"]:
        return frames @ shared[0].to(frames.dtype)


class GroupedWeightedSum(LayerInterface):
    """A weighted mean in each group of consecutive layers, concatenated and projected (arXiv 2406.12209).

    Args:
        num_layers: see :class:`LayerInterface`.
        dim: width of the layers.
        groups: groups, as equal in size as can be; the paper has 2 to 4.
        output_dim: width of the result; that of the layers by default.
        options: see :class:`LayerInterface`.
    """

    inside: Tensor

    def __init__(
        self, num_layers: int, dim: int, groups: int = 2, *, output_dim: int | None = None, **options: Any
    ) -> None:
        super().__init__(num_layers, dim, **options)
        if whole_number("groups", groups) > num_layers:
            raise ConfigError(f"groups={groups} is more than the {num_layers} layers")
        self.logits = nn.Parameter(torch.zeros(num_layers))
        inside = torch.zeros(groups, num_layers, dtype=torch.bool)
        for group, layers in enumerate(torch.arange(num_layers).tensor_split(groups)):
            inside[group, layers] = True
        self.register_buffer("inside", inside, persistent=False)
        self.output_dim = whole_number("output_dim", output_dim if output_dim is not None else dim)
        self.projection = nn.Linear(groups * dim, self.output_dim)

    def shared(self) -> tuple[Tensor, ...]:
        return (self.logits.expand_as(self.inside).masked_fill(~self.inside, float("-inf")).softmax(1),)

    def combine(self, frames: Float[Tensor, "frames dim layers"], *shared: Tensor) -> Float[Tensor, "frames output"]:
        sums = frames @ shared[0].to(frames.dtype).T
        return self.projection(sums.transpose(1, 2).flatten(1))


class ConcatProjection(LayerInterface):
    """All layers beside each other, projected: the general linear map (arXiv 2406.12209).

    Args:
        num_layers: see :class:`LayerInterface`.
        dim: width of the layers.
        output_dim: width of the result; that of the layers by default.
        options: see :class:`LayerInterface`.
    """

    def __init__(self, num_layers: int, dim: int, *, output_dim: int | None = None, **options: Any) -> None:
        super().__init__(num_layers, dim, **options)
        self.output_dim = whole_number("output_dim", output_dim if output_dim is not None else dim)
        self.projection = nn.Linear(num_layers * dim, self.output_dim)

    def combine(self, frames: Float[Tensor, "frames dim layers"], *shared: Tensor) -> Float[Tensor, "frames output"]:
        return self.projection(frames.transpose(1, 2).flatten(1))


class GumbelSelection(LayerInterface):
    """Every dimension takes its value from one layer, chosen by Gumbel-softmax (after Chiu et al., Interspeech 2024).

    In training a choice is drawn for each batch, with straight-through gradients; in evaluation each dimension takes
    the layer with the largest logit. Logits start at zero.

    Args:
        num_layers: see :class:`LayerInterface`.
        dim: width of the layers and, without ``output_dim``, of the result.
        temperature: of the softmax behind the gradients.
        output_dim: projects the chosen values to another width.
        options: see :class:`LayerInterface`.
    """

    def __init__(
        self, num_layers: int, dim: int, temperature: float = 1.0, *, output_dim: int | None = None, **options: Any
    ) -> None:
        super().__init__(num_layers, dim, **options)
        if not temperature > 0:
            raise ConfigError(f"temperature={temperature!r} is not above 0")
        self.temperature = temperature
        self.logits = nn.Parameter(torch.zeros(dim, num_layers))
        self.output_dim = whole_number("output_dim", output_dim if output_dim is not None else dim)
        self.projection = projection(dim, self.output_dim)

    def shared(self) -> tuple[Tensor, ...]:
        if self.training:
            return (functional.gumbel_softmax(self.logits, self.temperature, hard=True),)
        return (functional.one_hot(self.logits.argmax(1), self.num_layers).to(self.logits.dtype),)

    def combine(self, frames: Float[Tensor, "frames dim layers"], *shared: Tensor) -> Float[Tensor, "frames output"]:
        return self.projection((frames * shared[0].to(frames.dtype)).sum(2))


class ClsPooling(LayerInterface):
    """One Transformer layer over the layers of a frame; its output at a learned query token (arXiv 2406.12209).

    The paper does not say how the Transformer tells layers apart, nor its size: a learned embedding per layer, added
    to its vectors, and four times the width in the feed-forward block are our choices.

    Args:
        num_layers: see :class:`LayerInterface`.
        dim: width of the layers and of the result.
        heads: attention heads; by default 8, 4, 2 or 1, the most that divide ``dim``.
        options: see :class:`LayerInterface`.
    """

    def __init__(self, num_layers: int, dim: int, heads: int | None = None, **options: Any) -> None:
        super().__init__(num_layers, dim, **options)
        if heads is None:
            heads = next(count for count in (8, 4, 2, 1) if dim % count == 0)
        if dim % whole_number("heads", heads):
            raise ConfigError(f"heads={heads} does not divide dim={dim}")
        self.query = nn.Parameter(torch.randn(1, 1, dim) * dim**-0.5)
        self.position = nn.Parameter(torch.randn(num_layers, dim) * dim**-0.5)
        self.transformer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, dropout=0.0, batch_first=True)
        self.output_dim = dim

    def combine(self, frames: Float[Tensor, "frames dim layers"], *shared: Tensor) -> Float[Tensor, "frames dim"]:
        tokens = frames.transpose(1, 2) + self.position
        return self.transformer(torch.cat([self.query.expand(tokens.shape[0], 1, self.dim), tokens], dim=1))[:, 0]


def projection(dim: int, output_dim: int) -> nn.Module:
    """A linear layer between widths that differ, and nothing between equal ones."""
    return nn.Linear(dim, output_dim) if dim != output_dim else nn.Identity()
