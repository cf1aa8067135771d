"""Several encoders behind one interface: their frames, layers and widths are aligned, then summed or concatenated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import ConfigError, did_you_mean
from .alignment import Resampling, layer_weights, resample
from .hconv import CHConv, HConv
from .interfaces import ClsPooling, ConcatProjection, GroupedWeightedSum, GumbelSelection, WeightedSum, projection
from .layer_interface import CHUNK, LayerInterface, by_chunks, check_layers, whole_number, without_padding


@dataclass(frozen=True)
class UpstreamShape:
    """What fusion needs to know of an encoder.

    Attributes:
        num_layers: hidden layers that it gives, its input embedding among them.
        dim: their width.
        frame_shift: seconds from one frame to the next.
    """

    num_layers: int
    dim: int
    frame_shift: float = 0.02

    @classmethod
    def of(cls, upstream: Any) -> UpstreamShape:
        """From a mapping with these keys, or from anything with these attributes.

        Raises:
            ConfigError: a value is missing or out of its range.
        """
        names = ("num_layers", "dim", "frame_shift")
        if isinstance(upstream, Mapping) or hasattr(upstream, "items"):
            for key in upstream:
                if key not in names:
                    raise ConfigError(f"upstreams: no setting {key!r}{did_you_mean(str(key), names)}")
            values = dict(upstream)
        else:
            values = {name: getattr(upstream, name) for name in names if hasattr(upstream, name)}
        for name in names[:2]:
            if name not in values:
                raise ConfigError(f"upstreams: {upstream!r} says nothing about {name}")
            whole_number(name, values[name])
        shape = cls(**values)
        if not isinstance(shape.frame_shift, (int, float)) or not 0 < shape.frame_shift < 10:
            raise ConfigError(f"upstreams: frame_shift={shape.frame_shift!r} is not a time in seconds, such as 0.02")
        return shape


MODES: dict[str, tuple[type[LayerInterface], str]] = {
    "hconv": (HConv, "sum"),
    "chconv": (CHConv, "concat"),
    "ws": (WeightedSum, "stack"),
    "grouped_ws": (GroupedWeightedSum, "stack"),
    "concat_proj": (ConcatProjection, "concat"),
    "gumd": (GumbelSelection, "concat"),
    "cls": (ClsPooling, "stack"),
}
"""Interface of each mode, and how models are put together for it."""
_AS_WIDE = (WeightedSum, ClsPooling)  # interfaces whose result has the width of the layers
MERGES = ("sum", "concat", "stack")
SCALES = ("sum", "mean", "learned")
PROJECTIONS = ("auto", "none", "linear")


class UpstreamFusion(nn.Module):
    """Hidden layers of several encoders become one stream (Shih and Harwath, ASRU 2025, arXiv 2511.08389).

    Every model's layers are normalised, brought to the common frame rate, width and number of layers, and put
    together: ``sum`` adds the models up, ``concat`` puts their dimensions beside each other, ``stack`` their layers. An
    interface then makes one vector of each frame. Every output frame depends only on its own utterance, whatever else
    is in the batch and however it is padded.

    Args:
        upstreams: one entry per model with ``num_layers``, ``dim`` and ``frame_shift`` in seconds (0.02 by default):
            mappings, :class:`UpstreamShape` or upstream modules.
        mode: ``hconv`` (sum), ``chconv`` (concat), ``ws`` (one softmax over all layers of all models), ``grouped_ws``,
            ``concat_proj``, ``gumd`` (concat) or ``cls``.
        output_dim: width of the result; by default what the interface gives, which is about the width of the models.
        rate: the frame rate of the result: ``max``, that of the fastest model (the paper's), ``min``, that of the
            slowest, where faster ones are averaged, or a rate in Hz.
        layers: layers that models are interpolated to for ``sum`` and ``concat``: ``max`` (the paper's), ``min`` or a
            number.
        dim: the common width; that of the widest model by default.
        in_proj: ``auto`` has a linear layer, shared by the layers of a model, for models of another width where widths
            must be equal (``sum``, ``stack`` and CHConv); ``linear`` for all models; ``none`` for none.
        normalize: whether each layer's vectors are normalised to mean 0 and variance 1 first. The paper does not; but
            layers of models that normalise before each block differ by orders of magnitude.
        merge_scale: ``sum`` adds, ``mean`` divides by the number of models, ``learned`` multiplies each by a trained
            number, at first one over the number of models. ``mean`` does nothing for ``concat`` and ``stack``.
        merge: ``sum``, ``concat`` or ``stack`` in place of the mode's own.
        interface: further arguments of the interface, for example ``{"groups": 3}`` or ``{"kernel": 3}``.
        chunk_frames: frames of the batch that are worked on at once; bounds memory, changes nothing else.
        recompute: whether training computes a chunk again in the backward pass rather than keep its activations.

    Attributes:
        output_dim: width of the result.
        frame_shift: seconds from one frame of the result to the next.
        shapes: what ``upstreams`` said.
        interface: the :class:`LayerInterface`.

    Raises:
        ConfigError: an argument is wrong, or models do not fit together as they are asked to.
    """

    def __init__(
        self,
        upstreams: Sequence[Any],
        mode: str = "hconv",
        output_dim: int | None = None,
        *,
        rate: str | float = "max",
        layers: str | int = "max",
        dim: int | None = None,
        in_proj: str = "auto",
        normalize: bool = True,
        merge_scale: str = "sum",
        merge: str | None = None,
        interface: Mapping[str, Any] | None = None,
        chunk_frames: int = CHUNK,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if not upstreams or isinstance(upstreams, (str, Mapping)):
            raise ConfigError(f"upstreams={upstreams!r} is no list with an entry per model")
        _one_of(MODES, mode=mode)
        _one_of(SCALES, merge_scale=merge_scale)
        _one_of(PROJECTIONS, in_proj=in_proj)
        for name, value in (("normalize", normalize), ("recompute", recompute)):
            if not isinstance(value, bool):
                raise ConfigError(f"{name}={value!r} is neither true nor false")
        if interface is not None and not hasattr(interface, "items"):
            raise ConfigError(f"interface={interface!r} should be settings of the interface, such as {{'groups': 3}}")
        kind, own_merge = MODES[mode]
        self.merge = own_merge if merge is None else merge
        _one_of(MERGES, merge=self.merge)
        self.mode, self.normalize, self.recompute = mode, normalize, recompute
        self.chunk_frames = whole_number("chunk_frames", chunk_frames)
        self.shapes = [UpstreamShape.of(upstream) for upstream in upstreams]
        self.frame_shift = common_frame_shift(rate, [shape.frame_shift for shape in self.shapes])
        self._resampling = [Resampling.between(shape.frame_shift, self.frame_shift) for shape in self.shapes]
        self._align_layers(layers)
        widths = self._align_widths(dim, in_proj, kind)
        self._set_scale(merge_scale)
        self.interface = self._interface(kind, widths, output_dim, dict(interface or {}))
        self.output_dim = self.interface.output_dim
        self.projection: nn.Module = nn.Identity()
        if output_dim is not None and self.output_dim != output_dim:  # a weighted sum has the width of its input
            self.projection = projection(self.output_dim, whole_number("output_dim", output_dim))
            self.output_dim = output_dim

    def forward(
        self,
        features: Sequence[Sequence[Float[Tensor, "batch dim time"]]],
        lengths: Sequence[Int[Tensor, " batch"] | Sequence[Int[Tensor, " batch"]]],
    ) -> tuple[Float[Tensor, "batch output time"], Int[Tensor, " batch"]]:
        """Fuses a batch.

        Args:
            features: the hidden layers of each model, from its input to its output.
            lengths: valid frames of each model; a list per layer, as NeMo's extractor gives it, will do.

        Returns:
            Features, zero after the end of an utterance, and valid frames, those of the models that have the rate of
            the result.

        Raises:
            ConfigError: models or layers are missing or have other shapes.
        """
        if len(features) != len(self.shapes) or len(lengths) != len(self.shapes):
            raise ConfigError(
                f"features of {len(features)} and lengths of {len(lengths)} models given, made for {len(self.shapes)}"
            )
        valid = [item if isinstance(item, Tensor) else item[0] for item in lengths]
        for index, (layers, shape) in enumerate(zip(features, self.shapes, strict=True)):
            check_layers(layers, valid, shape.num_layers, shape.dim, f"upstream {index}")
        time, length = self._extent(features, valid)
        shared = self.interface.shared()
        device = features[0][0].device

        def part(start: int, end: int | None) -> Tensor:
            times = torch.arange(start, time if end is None else end, device=device)
            frames = self._frames(features, valid, times)
            fused = self.projection(self.interface.combine(frames, *shared))
            return fused.unflatten(0, (-1, times.shape[0])).transpose(1, 2)

        batch = features[0][0].shape[0]
        result = by_chunks(part, batch, time, self.chunk_frames, self.recompute and self.training)
        return without_padding(result, length), length

    def _frames(
        self, features: Sequence[Sequence[Tensor]], lengths: Sequence[Tensor], times: Int[Tensor, " time"]
    ) -> Float[Tensor, "frames dim layers"]:
        """The models put together at some frames of the result."""
        models = []
        for index, layers in enumerate(features):
            frames = resample(layers, *self._resampling[index].weights(lengths[index], times), norm=self.normalize)
            frames = frames.flatten(0, 1)
            if not isinstance(self.projections[index], nn.Identity):
                frames = self.projections[index](frames.transpose(1, 2)).transpose(1, 2)
            if (weights := getattr(self, f"layer_weights_{index}")) is not None:
                frames = frames @ weights.to(frames.dtype)
            models.append(frames if self.scale is None else frames * self.scale[index])
        if self.merge == "sum":
            return torch.stack(models).sum(0) if len(models) > 1 else models[0]
        return torch.cat(models, dim=1 if self.merge == "concat" else 2)

    def _extent(self, features: Sequence[Sequence[Tensor]], lengths: Sequence[Tensor]) -> tuple[int, Tensor]:
        """Frames of the result, of batch and utterances: those of the models of its rate, or of the fastest."""
        rates = [resampling.ratio for resampling in self._resampling]
        reference = 1.0 if 1.0 in rates else max(rates)
        own = [index for index, rate in enumerate(rates) if rate == reference]
        time = max(self._resampling[index].time(features[index][0].shape[2]) for index in own)
        return time, torch.stack([self._resampling[index].length(lengths[index]) for index in own]).amax(0)

    def _align_layers(self, layers: str | int) -> None:
        counts = [shape.num_layers for shape in self.shapes]
        if layers not in ("max", "min"):
            self.num_layers = whole_number("layers", layers)  # type: ignore[arg-type]
        else:
            self.num_layers = max(counts) if layers == "max" else min(counts)
        for index, count in enumerate(counts):
            same = count == self.num_layers or (self.merge == "stack" and layers == "max")
            matrix = None if same else layer_weights(count, self.num_layers)
            self.register_buffer(f"layer_weights_{index}", matrix, persistent=False)
        if self.merge == "stack":
            self.num_layers = sum(counts) if layers == "max" else self.num_layers * len(counts)

    def _align_widths(self, dim: int | None, in_proj: str, kind: type[LayerInterface]) -> list[int]:
        widths = [shape.dim for shape in self.shapes]
        common = whole_number("dim", dim) if dim is not None else max(widths)
        equal = self.merge != "concat" or kind is CHConv or dim is not None
        projects = in_proj == "linear" or (in_proj == "auto" and equal)
        wanted = [common] * len(widths) if projects else widths
        if self.merge != "concat" and len(set(wanted)) > 1:
            raise ConfigError(
                f"models of widths {widths} cannot be put together by {self.merge} with in_proj='none'; "
                "take in_proj='auto', or mode='concat_proj' or merge='concat'"
            )
        self.projections = nn.ModuleList(
            nn.Linear(width, target) if in_proj == "linear" else projection(width, target)
            for width, target in zip(widths, wanted, strict=True)
        )
        return wanted

    def _set_scale(self, merge_scale: str) -> None:
        self.scale: Tensor | None
        share = torch.full((len(self.shapes),), 1.0 / len(self.shapes))
        if merge_scale == "learned":
            self.scale = nn.Parameter(share)
        else:
            self.register_buffer("scale", share if merge_scale == "mean" and self.merge == "sum" else None, False)

    def _interface(
        self, kind: type[LayerInterface], widths: Sequence[int], output_dim: int | None, options: dict[str, Any]
    ) -> LayerInterface:
        arguments: dict[str, Any] = {"num_layers": self.num_layers, "dim": widths[0], **options}
        if kind is CHConv:
            if self.merge == "concat":
                if len(set(widths)) > 1:
                    raise ConfigError(f"CHConv needs models of one width, these have {widths}; take in_proj='auto'")
                arguments["num_models"] = len(widths)
        elif self.merge == "concat":
            arguments["dim"] = sum(widths)
            if kind not in (HConv, *_AS_WIDE):
                arguments.setdefault("output_dim", max(widths))
        if output_dim is not None and kind not in _AS_WIDE:
            arguments["output_dim"] = whole_number("output_dim", output_dim)
        for name in ("normalize", "chunk_frames", "recompute", "num_layers", "dim", "output_dim"):
            if name in options:
                raise ConfigError(f"interface: {name} is an argument of UpstreamFusion itself")
        try:
            return kind(**arguments)
        except TypeError as error:
            raise ConfigError(f"interface: {kind.__name__} does not take these settings ({error})") from error


def common_frame_shift(rate: str | float, shifts: Sequence[float]) -> float:
    """Seconds between frames of the result, for models of some frame shifts; ``rate`` as for :class:`UpstreamFusion`.

    Raises:
        ConfigError: ``rate`` is neither a word that is known nor a rate.
    """
    if rate == "max":
        return min(shifts)
    if rate == "min":
        return max(shifts)
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not rate > 0:
        raise ConfigError(f"rate={rate!r} is neither 'max' nor 'min' nor frames per second")
    return 1.0 / rate


def _one_of(known: Iterable[str], **setting: str) -> None:
    for name, value in setting.items():
        if value not in known:
            raise ConfigError(f"{name}={value!r}{did_you_mean(str(value), known)}")
