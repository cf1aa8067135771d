"""Puts frames and layers of several models over each other: interpolation that knows how long each utterance is.

``torch.nn.functional.interpolate`` stretches a padded batch as a whole, so that an utterance's frames depend on the
longest one beside it. Here every utterance has its own end, which the last frame is held at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Float, Int
from torch import Tensor

_FINEST = 10_000
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Resampling:
    """From the frames of a model to the frames of the reference.

    Attributes:
        ratio: frames of the model per frame of the reference; above 1 they are averaged, below 1 interpolated.
    """

    ratio: float

    @classmethod
    def between(cls, frame_shift: float, reference: float) -> Resampling:
        """For frames that are so many seconds apart."""
        return cls(float((Fraction(reference) / Fraction(frame_shift)).limit_denominator(_FINEST)))

    @property
    def taps(self) -> int:
        """Frames that are mixed into one."""
        return 1 if self.ratio == 1 else 2 if self.ratio < 1 else math.ceil(self.ratio) + 1

    def weights(
        self, lengths: Int[Tensor, " batch"], times: Int[Tensor, " time"]
    ) -> tuple[Int[Tensor, "batch time taps"], Float[Tensor, "batch time taps"]]:
        """Which frames make up each frame of the reference, and how much of each.

        Interpolation is linear between the centres of frames: for utterances without padding that is
        ``interpolate(mode="linear", align_corners=False)``. Averaging weighs a frame by how much of it lies within
        the frame of the reference, so it is a mean where the ratio is a whole number. What would lie behind the last
        valid frame is the last valid frame.
        """
        last = (lengths - 1).clamp(min=0)[:, None]
        if self.ratio == 1:
            index = torch.minimum(times, last)
            return index[:, :, None], torch.ones_like(index, dtype=torch.float32)[:, :, None]
        if self.ratio < 1:
            place = (times + 0.5) * self.ratio - 0.5
            place = torch.minimum(place.clamp(min=0.0), last.to(place.dtype))
            left = place.floor()
            part = place - left
            index = torch.stack([left.long(), torch.minimum(left.long() + 1, last)], dim=-1)
            return index, torch.stack([1.0 - part, part], dim=-1)
        start, end = times * self.ratio, (times + 1) * self.ratio
        frames = start.floor().long()[:, None] + torch.arange(self.taps, device=times.device)
        overlap = torch.minimum(end[:, None], frames + 1.0) - torch.maximum(start[:, None], frames.to(start.dtype))
        overlap = overlap.clamp(min=0.0).masked_fill(overlap < _ROUNDING, 0.0)
        inside = (frames <= last[:, :, None]) & (overlap > 0)
        weight = torch.where(inside, overlap, 0.0)
        # A frame of the reference behind the end of this model: its last frame.
        weight[:, :, 0] = torch.where(inside.any(2), weight[:, :, 0], 1.0)
        return torch.minimum(frames, last[:, :, None]), weight / weight.sum(2, keepdim=True)

    def time(self, time: int) -> int:
        """As :meth:`length`, for the size of an axis."""
        return math.ceil(time / self.ratio - _ROUNDING) if self.ratio != 1 else time

    def length(self, length: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Valid frames of the reference for so many of the model."""
        return torch.ceil(length / self.ratio - _ROUNDING).long() if self.ratio != 1 else length.long()


def resample(
    layers: Sequence[Float[Tensor, "batch dim source"]],
    index: Int[Tensor, "batch time taps"],
    weight: Float[Tensor, "batch time taps"],
    norm: bool = False,
) -> Float[Tensor, "batch time dim layers"]:
    """The layers of a model at the frames of the reference, normalised before they are mixed if ``norm``."""
    rows = torch.arange(index.shape[0], device=index.device)[:, None, None]
    mixed = []
    for layer in layers:
        frames = layer.transpose(1, 2)[rows, index]
        if norm:
            frames = torch.nn.functional.layer_norm(frames, frames.shape[-1:])
        mixed.append(frames[:, :, 0] if index.shape[2] == 1 else (frames * weight[..., None].to(frames.dtype)).sum(2))
    return torch.stack(mixed, dim=-1)


def layer_weights(layers: int, wanted: int) -> Float[Tensor, "layers wanted"]:
    """Linear interpolation over the layer axis: first layer to first, last to last, evenly between.

    Example:
        >>> layer_weights(2, 3)
        tensor([[1.0000, 0.5000, 0.0000],
                [0.0000, 0.5000, 1.0000]])
    """
    weights = torch.zeros(layers, wanted)
    for index in range(wanted):
        place = Fraction(index * (layers - 1), max(1, wanted - 1))
        left = min(int(place), layers - 1)
        weights[left, index] += 1.0 - float(place - left)
        if place > left:
            weights[left + 1, index] += float(place - left)
    return weights
