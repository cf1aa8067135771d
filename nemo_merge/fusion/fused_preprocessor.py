"""Fused encoders in the preprocessor slot of a NeMo model. Importing this imports NeMo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo.core.classes import ModelPT, NeuralModule
from nemo.core.neural_types import AudioSignal, LengthsType, NeuralType, SpectrogramType
from omegaconf import OmegaConf, open_dict
from torch import Tensor, nn

from ..errors import AudioError, ConfigError
from .cache import FeatureCache
from .description import TARGET, frame_shifts, output_dim_of
from .sources import build, describe, load_weights, plain
from .upstream_fusion import UpstreamFusion, common_frame_shift


class FusedUpstreamPreprocessor(NeuralModule):
    """Audio in, fused hidden layers of several encoders out: ``model.preprocessor`` of any NeMo model that hears.

    It works in recognisers (CTC, RNN-T, TDT, AED, hybrids) and in classification and speaker models. The weights of
    the encoders are in the model's ``.nemo``, their configuration is in its configuration; where this package is
    installed and :func:`nemo_merge.register` was called, ``restore_from`` needs nothing else.

    The frames of its output are 20 ms or more apart, not 10: take a downstream encoder with ``subsampling_factor`` 1 or
    2, and ``feat_in`` equal to :attr:`output_dim`.

    Args:
        upstreams: a list of mappings with ``nemo`` (a ``.nemo`` file), ``huggingface`` (a folder, or a name on the Hub)
            or ``merge`` (the YAML file of a merge, which is carried out in memory), and the fields of
            :class:`~nemo_merge.fusion.UpstreamOptions`; in Python, NeMo models will do.
        mode: as for :class:`~nemo_merge.fusion.UpstreamFusion`.
        output_dim: likewise.
        features: NeMo's name for ``output_dim``.
        sample_rate: of the audio that comes in; the encoders must hear the same.
        window_stride: seconds between frames, which NeMo's timestamps need. It is computed, and must be right if given.
        save_upstreams: whether the weights of frozen encoders are saved with the model. Without them the file is small,
            and restoring it needs the encoders' own files.
        cache: a folder of :func:`~nemo_merge.fusion.cache_features`; utterances that are not in it are computed.
        settings: further arguments of :class:`~nemo_merge.fusion.UpstreamFusion`.

    Attributes:
        upstreams: the encoders.
        fusion: the :class:`~nemo_merge.fusion.UpstreamFusion`.
        output_dim: width of the output.

    Raises:
        ConfigError: a setting is wrong, encoders hear audio of other rates, or an optional package is missing.
        CheckpointError: an encoder's file cannot be read.
        PlanError, MergeError: a merge cannot be carried out.
    """

    def __init__(
        self,
        upstreams: Sequence[Any],
        mode: str = "hconv",
        output_dim: int | None = None,
        *,
        features: int | None = None,
        sample_rate: int = 16000,
        window_stride: float | None = None,
        save_upstreams: bool = True,
        cache: str | Path | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        restored = ModelPT._is_model_being_restored()
        given = [item if isinstance(item, nn.Module) else plain(item) for item in upstreams]
        entries: list[Any] = [
            item if restored and not isinstance(item, nn.Module) and "config" in item else describe(item)
            for item in given
        ]
        self._sample_rate, self.save_upstreams = sample_rate, save_upstreams
        settings = plain(settings)
        width = output_dim_of({"output_dim": output_dim, "features": features})
        self.window_stride = common_frame_shift(settings.get("rate", "max"), frame_shifts(entries))
        if window_stride is not None and abs(window_stride - self.window_stride) > 1e-6:
            raise ConfigError(f"window_stride={window_stride}, but frames are {self.window_stride} s apart")
        self.upstreams = nn.ModuleList()
        for item, entry in zip(given, entries, strict=True):
            upstream = build(entry)
            if upstream.sample_rate != sample_rate:
                raise ConfigError(
                    f"{upstream.name}: hears audio of {upstream.sample_rate} Hz, but sample_rate={sample_rate}; fuse "
                    "encoders of one rate, and set the model's sample_rate to it"
                )
            if isinstance(item, nn.Module):
                upstream.load_weights(item.state_dict())
            elif not restored or (not save_upstreams and upstream.options.train == "frozen"):
                load_weights(entry, upstream)
            self.upstreams.append(upstream.prepare())
        self.fusion = _fusion(list(self.upstreams), mode, width, settings)
        self.output_dim = self.fusion.output_dim
        self.config: dict[str, Any] = {
            "_target_": TARGET,
            "_recursive_": False,
            "sample_rate": sample_rate,
            "window_stride": self.window_stride,
            "mode": mode,
            "features": self.output_dim,
            **settings,
            "save_upstreams": save_upstreams,
            "upstreams": entries,
        }
        self._cache: FeatureCache | None = None
        if cache is not None and not restored:
            self.use_cache(cache)
        if not save_upstreams:
            self.register_state_dict_post_hook(_leave_out)
            self.register_load_state_dict_pre_hook(_put_back)

    @property
    def input_types(self) -> dict[str, NeuralType]:
        """What NeMo's checks and exports need to know of :meth:`forward`."""
        audio = NeuralType(("B", "T"), AudioSignal(freq=self._sample_rate))
        return {"input_signal": audio, "length": NeuralType(tuple("B"), LengthsType())}

    @property
    def output_types(self) -> dict[str, NeuralType]:
        """Likewise."""
        return {
            "processed_signal": NeuralType(("B", "D", "T"), SpectrogramType()),
            "processed_length": NeuralType(tuple("B"), LengthsType()),
        }

    def forward(self, input_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Fused features, [batch, output_dim, frames], and valid frames, of samples and their numbers.

        Raises:
            AudioError: an utterance has no samples.
        """
        return self.fusion(*self.hidden_layers(input_signal, length))

    def hidden_layers(self, audio: Tensor, lengths: Tensor) -> tuple[list[list[Tensor]], list[Tensor]]:
        """The hidden layers of every upstream, from the cache where they are in it, and valid frames."""
        if bool((lengths < 1).any()) or not audio.shape[1]:
            empty = (lengths < 1).nonzero().flatten().tolist()
            raise AudioError(
                f"utterances {empty} of a batch of {len(lengths)} have no samples; set min_duration in the data's "
                "configuration, or look for empty files"
            )
        if self._cache is not None:
            return self._cache.hidden_layers(self, audio, lengths)
        return self.compute(audio, lengths)

    def compute(self, audio: Tensor, lengths: Tensor) -> tuple[list[list[Tensor]], list[Tensor]]:
        """As :meth:`hidden_layers`, without a cache."""
        both = [upstream(audio, lengths) for upstream in self.upstreams]
        return [layers for layers, _ in both], [valid for _, valid in both]

    def use_cache(self, folder: str | Path | None) -> None:
        """Takes hidden layers from a folder of :func:`~nemo_merge.fusion.cache_features` from now on, or no longer.

        Raises:
            ConfigError: the folder is no finished cache, is of other encoders, or an encoder is trained.
        """
        self._cache = None if folder is None else FeatureCache(Path(folder), self)

    def place_in(self, model: ModelPT) -> None:
        """Makes this the preprocessor of a model, in its configuration too, so that it can be saved and restored.

        Raises:
            ConfigError: the model's encoder expects features of another width.
        """
        wanted = getattr(model.encoder, "_feat_in", self.output_dim)
        if wanted != self.output_dim:
            raise ConfigError(
                f"{type(model).__name__}: its encoder expects features of width {wanted}, not {self.output_dim}; "
                f"set output_dim={wanted}, or feat_in of the encoder"
            )
        model.preprocessor = self
        config = model.cfg
        with open_dict(config):
            config.preprocessor = OmegaConf.create(self.config)
        model.cfg = config


def _fusion(upstreams: Sequence[Any], mode: str, width: int | None, settings: Mapping[str, Any]) -> UpstreamFusion:
    try:
        return UpstreamFusion(upstreams, mode, width, **settings)
    except TypeError as error:
        raise ConfigError(f"FusedUpstreamPreprocessor does not take these settings ({error})") from error


def _frozen(module: Any, prefix: str) -> list[str]:
    return [
        f"{prefix}upstreams.{index}."
        for index, upstream in enumerate(module.upstreams)
        if upstream.options.train == "frozen"
    ]


def _leave_out(module: Any, state_dict: dict[str, Tensor], prefix: str, local_metadata: Any) -> None:
    for key in [key for key in state_dict if key.startswith(tuple(_frozen(module, prefix)))]:
        del state_dict[key]


def _put_back(module: Any, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for part in _frozen(module, prefix):
        upstream = module.upstreams[int(part.split(".")[-2])]
        for key, value in upstream.state_dict().items():
            state_dict.setdefault(f"{part}{key}", value)
