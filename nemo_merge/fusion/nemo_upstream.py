"""NeMo's Conformer and FastConformer encoders as upstreams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo.collections.asr.modules import ConformerEncoder
from nemo.core.classes import NeuralModule
from omegaconf import OmegaConf
from torch import Tensor, nn

from ..adapters import default_targets
from ..errors import ConfigError
from .upstream import Capture, Upstream, UpstreamOptions, load_strictly


class NemoUpstream(Upstream):
    """Preprocessor and encoder of a NeMo model, whatever its decoder.

    Hidden layer 0 is the output of the subsampling, before positions are added; layer ``l`` that of block ``l``.

    Args:
        config: the model's configuration; ``preprocessor`` and ``encoder`` are used.
        options: how it is used.
        name: how messages call it.

    Raises:
        ConfigError: there is no such encoder in the model, or one that shortens within its layers.
    """

    parts = ("preprocessor", "encoder")

    def __init__(self, config: Mapping[str, Any], options: UpstreamOptions, name: str) -> None:
        parts = {}
        for part in self.parts:
            if not config.get(part):
                raise ConfigError(f"{name}: its configuration has no {part}")
            parts[part] = NeuralModule.from_config_dict(OmegaConf.create(dict(config[part])))
        encoder: Any = parts["encoder"]
        if not isinstance(encoder, ConformerEncoder):
            raise ConfigError(
                f"{name}: its encoder is a {type(encoder).__name__}; Conformer and FastConformer encoders can be fused"
            )
        if encoder.reduction_position not in (None, -1):
            raise ConfigError(
                f"{name}: its encoder shortens at layer {encoder.reduction_position} (reduction_position), so that its "
                "layers have different frame rates"
            )
        super().__init__(options, name, len(encoder.layers) + 1)
        self.preprocessor, self._encoder = parts["preprocessor"], encoder
        self.sample_rate = int(config["preprocessor"].get("sample_rate", 16000))
        self.frame_shift = self.frame_shift_of(config)
        self.dim = encoder.d_model
        featurizer: Any = getattr(self.preprocessor, "featurizer", None)
        if hasattr(featurizer, "pad_to"):
            featurizer.pad_to = 0  # as in transcribe(): frames that nobody hears need no computation

    @staticmethod
    def frame_shift_of(config: Mapping[str, Any]) -> float:
        encoder = config["encoder"]
        factor = encoder.get("subsampling_factor", 4) if encoder.get("subsampling", "striding") else 1
        return round(float(config["preprocessor"].get("window_stride", 0.01)) * factor, 9)

    @property
    def encoder(self) -> nn.Module:
        return self._encoder

    @property
    def lora_targets(self) -> str:
        return default_targets(self._encoder)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        for part, module in zip(self.parts, (self.preprocessor, self._encoder), strict=True):
            load_strictly(module, weights, f"{part}.", self.name)

    def hidden_layers(self, audio: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        features, valid = self.preprocessor(input_signal=audio, length=lengths)
        ends: list[Tensor] = []
        with Capture() as capture:
            capture.callback(
                self._encoder.pre_encode.register_forward_hook(
                    lambda _, args, output: ends.append(output[1] if isinstance(output, tuple) else valid)
                ).remove
            )
            capture.output_of(self._encoder.pre_encode)
            for layer in self._encoder.layers:
                capture.output_of(layer)
            self._encoder(audio_signal=features, length=valid)
        return capture.tensors, ends[0].long()
