"""What all interfaces share: from the hidden layers of an encoder to one vector per frame."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ..errors import ConfigError

CHUNK = 8192


class LayerInterface(nn.Module, ABC):
    """Base of the interfaces: every frame by itself, ``num_layers`` vectors of ``dim`` become one.

    An interface is a drop-in ``aggregator`` of NeMo's ``ConformerMultiLayerFeatureExtractor``, and what
    :class:`~nemo_merge.fusion.UpstreamFusion` uses for several encoders. A subclass sets :attr:`output_dim` and writes
    :meth:`combine`.

    Args:
        num_layers: hidden layers of the encoder, its input embedding among them.
        dim: their width.
        normalize: whether to normalise every layer's vectors to mean 0 and variance 1 first, without parameters.
        chunk_frames: frames of the batch that are worked on at once; bounds memory, changes nothing else.
        recompute: whether training computes a chunk again in the backward pass rather than keep its activations.

    Attributes:
        output_dim: width of the result.

    Raises:
        ConfigError: a number is out of its range.
    """

    output_dim: int

    def __init__(
        self,
        num_layers: int,
        dim: int,
        *,
        normalize: bool = False,
        chunk_frames: int = CHUNK,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.num_layers = whole_number("num_layers", num_layers)
        self.dim = whole_number("dim", dim)
        self.chunk_frames = whole_number("chunk_frames", chunk_frames)
        self.normalize, self.recompute = normalize, recompute

    @abstractmethod
    def combine(self, frames: Float[Tensor, "frames dim layers"], *shared: Tensor) -> Float[Tensor, "frames output"]:
        """The result for some frames.

        Args:
            frames: hidden vectors, layers last.
            shared: what :meth:`shared` returned for this batch.
        """

    def shared(self) -> tuple[Tensor, ...]:
        """What is computed, or drawn, once for a whole batch."""
        return ()

    def forward(
        self, features: Sequence[Float[Tensor, "batch dim time"]], lengths: Sequence[Int[Tensor, " batch"]]
    ) -> tuple[Float[Tensor, "batch output time"], Int[Tensor, " batch"]]:
        """The layers of one encoder as one.

        Args:
            features: the hidden layers, from the input to the output.
            lengths: valid frames, one tensor per layer, as NeMo's extractor gives them.

        Returns:
            Features, zero after the end of an utterance, and valid frames.

        Raises:
            ConfigError: layers are missing or have other shapes.
        """
        check_layers(features, lengths, self.num_layers, self.dim, type(self).__name__)
        shared, (batch, _, time) = self.shared(), features[0].shape

        def part(start: int, end: int | None) -> Tensor:
            frames = torch.stack([layer[:, :, start:end].transpose(1, 2) for layer in features], dim=-1)
            if self.normalize:
                frames = functional.layer_norm(frames.transpose(2, 3), (self.dim,)).transpose(2, 3)
            result = self.combine(frames.flatten(0, 1), *shared)
            return result.unflatten(0, frames.shape[:2]).transpose(1, 2)

        result = by_chunks(part, batch, time, self.chunk_frames, self.recompute and self.training)
        return without_padding(result, lengths[0]), lengths[0]


def by_chunks(
    part: Callable[[int, int | None], Tensor], batch: int, time: int, frames: int, recompute: bool
) -> Float[Tensor, "batch output time"]:
    """Joins ``part(start, end)`` over stretches of time that hold about ``frames`` frames of the batch.

    Exported and traced models work on everything at once: their shapes are to stay open.
    """
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return part(0, None)
    step = max(1, frames // max(1, batch))
    if recompute and torch.is_grad_enabled():
        parts = [
            checkpoint(part, start, min(start + step, time), use_reentrant=False) for start in range(0, time, step)
        ]
    else:
        parts = [part(start, min(start + step, time)) for start in range(0, time, step)]
    return torch.cat(parts, dim=2) if len(parts) != 1 else parts[0]


def without_padding(
    features: Float[Tensor, "batch dim time"], lengths: Int[Tensor, " batch"]
) -> Float[Tensor, "batch dim time"]:
    """Features with zeros after the end of each utterance, whatever stood there."""
    times = torch.arange(features.shape[2], device=features.device)
    return features.masked_fill((times >= lengths[:, None])[:, None], 0.0)


def check_layers(features: Sequence[Tensor], lengths: Sequence[Tensor], count: int, dim: int, name: str) -> None:
    """Refuses layers of another number or shape than an interface was made for."""
    if len(features) != count:
        raise ConfigError(f"{name}: {len(features)} layers given, but num_layers={count}")
    if torch.jit.is_tracing():
        return  # the shapes of the example are checked by running it
    if not len(lengths):
        raise ConfigError(f"{name}: lengths are missing; give one tensor of valid frames per layer")
    first = features[0].shape
    for index, layer in enumerate(features):
        if layer.dim() != 3 or layer.shape[1] != dim:
            raise ConfigError(f"{name}: layer {index} is {list(layer.shape)}, not [batch, {dim}, time]")
        if layer.shape != first:
            raise ConfigError(
                f"{name}: layer {index} is {list(layer.shape)}, but layer 0 {list(first)}; an encoder that shortens "
                "within its layers (reduction_position) needs UpstreamFusion with the layers of each rate apart"
            )


def whole_number(name: str, value: int, least: int = 1) -> int:
    """``value``, if it is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r} is not a whole number of {least} or more")
    return value
