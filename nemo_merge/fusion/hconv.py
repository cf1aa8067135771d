"""Hierarchical convolution over the layer axis (Shih et al., Interspeech 2024, and Shih and Harwath, ASRU 2025)."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ..errors import ConfigError, did_you_mean
from .interfaces import projection
from .layer_interface import LayerInterface, whole_number

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "none": nn.Identity}
PLACEMENTS = ("wide", "project_first")


class HConv(LayerInterface):
    """Convolutions along the layers of each frame, which shorten that axis by three until few positions are left.

    ``floor(log3 L)`` convolutions of kernel 5 and stride 3, each with a bias and followed by a ReLU. All but the last
    keep the width; the last has ``floor(D / L_n)`` channels for the ``L_n`` positions that are left, so that the
    result, channels and then positions, has about the width of the input (arXiv 2406.12209, section 3; arXiv
    2511.08389). Features are not negative: put a linear layer or a normalisation behind them.

    Args:
        num_layers: see :class:`LayerInterface`; 3 at least.
        dim: width of the layers.
        kernel: width of the convolutions, odd.
        stride: how much each of them shortens the axis.
        activation: ``relu``, ``gelu``, ``silu`` or ``none``.
        output_dim: width of the result. By default ``floor(D / L_n) * L_n``, which is below ``dim`` where ``L_n`` does
            not divide it; a linear layer is added for any other width.
        options: see :class:`LayerInterface`.

    Attributes:
        chain: positions on the layer axis, before the first convolution and after each.

    Raises:
        ConfigError: there are fewer layers than the stride, or fewer dimensions than positions.
    """

    def __init__(
        self,
        num_layers: int,
        dim: int,
        kernel: int = 5,
        stride: int = 3,
        activation: str = "relu",
        *,
        output_dim: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_layers, dim, **options)
        self.convolutions, self.chain, width = _convolutions(num_layers, dim, kernel, stride, activation)
        self.output_dim = whole_number("output_dim", output_dim if output_dim is not None else width)
        self.projection = projection(width, self.output_dim)

    def combine(self, frames: Float[Tensor, "frames dim layers"], *shared: Tensor) -> Float[Tensor, "frames output"]:
        return self.projection(self.convolutions(frames).flatten(1))


class CHConv(LayerInterface):
    """Hierarchical convolution over the layers of several models, whose dimensions stand beside each other.

    The paper concatenates and convolves, without saying what width comes out. ``wide`` keeps all dimensions through the
    convolutions and projects the result to the width of one model; ``project_first`` projects before, with one linear
    layer for all hidden layers, and needs a third of the parameters for two models. The default is our choice.

    Args:
        num_layers: hidden layers of each model, after alignment; 3 at least.
        dim: width of each model's layers; the features that are given have ``num_models * dim`` dimensions.
        num_models: models that stand beside each other. With one this is :class:`HConv`.
        placement: ``wide`` or ``project_first``.
        kernel: as for :class:`HConv`.
        stride: likewise.
        activation: likewise.
        output_dim: width of the result; ``dim`` by default.
        options: see :class:`LayerInterface`. ``normalize`` looks at each model by itself only in
            :class:`~nemo_merge.fusion.UpstreamFusion`.

    Raises:
        ConfigError: as :class:`HConv`, or a placement that does not exist.
    """

    def __init__(
        self,
        num_layers: int,
        dim: int,
        num_models: int = 1,
        placement: str = "wide",
        kernel: int = 5,
        stride: int = 3,
        activation: str = "relu",
        *,
        output_dim: int | None = None,
        **options: Any,
    ) -> None:
        total = whole_number("num_models", num_models) * whole_number("dim", dim)
        super().__init__(num_layers, total, **options)
        if placement not in PLACEMENTS:
            raise ConfigError(f"placement={placement!r}{did_you_mean(placement, PLACEMENTS)}")
        inner = total if placement == "wide" else dim
        self.input_projection = projection(total, inner)
        self.convolutions, self.chain, width = _convolutions(num_layers, inner, kernel, stride, activation)
        self.output_dim = whole_number("output_dim", output_dim if output_dim is not None else dim)
        self.projection = projection(width, self.output_dim)

    def combine(self, frames: Float[Tensor, "frames dim layers"], *shared: Tensor) -> Float[Tensor, "frames output"]:
        if not isinstance(self.input_projection, nn.Identity):
            frames = self.input_projection(frames.transpose(1, 2)).transpose(1, 2)
        return self.projection(self.convolutions(frames).flatten(1))


def geometry(num_layers: int, kernel: int = 5, stride: int = 3) -> list[int]:
    """Positions on the layer axis, before the first convolution and after each.

    Example:
        >>> geometry(13), geometry(25), geometry(33)
        ([13, 5, 2], [25, 9, 3], [33, 11, 4, 2])

    Raises:
        ConfigError: the layers are too few for one convolution.
    """
    whole_number("num_layers", num_layers)
    if whole_number("kernel", kernel) % 2 == 0:
        raise ConfigError(f"kernel={kernel} is even; take an odd one, so that no side of a layer is left out")
    if whole_number("stride", stride, least=2) > kernel:
        raise ConfigError(f"stride={stride} is above kernel={kernel} and would leave layers out")
    if num_layers < stride:
        raise ConfigError(
            f"num_layers={num_layers}: a hierarchical convolution of stride {stride} needs {stride} layers or more; "
            "take more layers of the model, or WeightedSum or ConcatProjection"
        )
    chain, left = [num_layers], num_layers
    while left >= stride:  # floor(log(243) / log(3)) is 4 in floating point, so n is counted
        chain.append((chain[-1] + 2 * (kernel // 2) - kernel) // stride + 1)
        left //= stride
    return chain


def _convolutions(
    num_layers: int, dim: int, kernel: int, stride: int, activation: str
) -> tuple[nn.Sequential, list[int], int]:
    """The convolutions, the positions before and after each, and the width of their flattened result."""
    if activation not in ACTIVATIONS:
        raise ConfigError(f"activation={activation!r}{did_you_mean(activation, ACTIVATIONS)}")
    chain = geometry(num_layers, kernel, stride)
    channels = dim // chain[-1]
    if not channels:
        raise ConfigError(f"dim={dim} is less than the {chain[-1]} positions that are left of {num_layers} layers")
    parts: list[nn.Module] = []
    for index in range(1, len(chain)):
        out = dim if index < len(chain) - 1 else channels
        parts += [nn.Conv1d(dim, out, kernel, stride, kernel // 2), ACTIVATIONS[activation]()]
    return nn.Sequential(*parts), chain, channels * chain[-1]
