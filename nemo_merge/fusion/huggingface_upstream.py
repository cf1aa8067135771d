"""Hugging Face's Whisper, wav2vec 2.0, HuBERT, WavLM and Data2Vec as upstreams."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ..errors import CheckpointError, ConfigError
from .upstream import Capture, Upstream, UpstreamOptions

WAV2VEC = ("wav2vec2", "hubert", "wavlm", "data2vec-audio")
MODEL_TYPES = ("whisper", *WAV2VEC)


def frame_shift_of(config: Mapping[str, Any]) -> float:
    """Seconds between frames of a model's last convolution."""
    features = config["features"]
    strides = [2, features.get("hop_length", 160)]
    if config["config"]["model_type"] != "whisper":
        strides = model_config(config).conv_stride
    return round(math.prod(strides) / features["sampling_rate"], 9)


def model_config(config: Mapping[str, Any]) -> Any:
    """Transformers' configuration of a description."""
    from transformers import AutoConfig

    settings = {key: value for key, value in config["config"].items() if key != "model_type"}
    return AutoConfig.for_model(config["config"]["model_type"], **settings)


def huggingface_upstream(config: Mapping[str, Any], options: UpstreamOptions, name: str) -> Upstream:
    """An upstream with random weights, of a model's ``config`` and the ``features`` of its feature extractor.

    Raises:
        ConfigError: a model of another type, or transformers is not installed.
    """
    kind = config["config"].get("model_type")
    if kind not in MODEL_TYPES:
        raise ConfigError(f"{name}: model_type {kind!r} is none that can be fused ({', '.join(MODEL_TYPES)})")
    return (WhisperUpstream if kind == "whisper" else Wav2VecUpstream)(config, options, name)


class _HuggingFace(Upstream):
    """Hidden layers are those of ``output_hidden_states``.

    The first is the input of the first block, the last the encoder's output, after its final normalisation if any.
    """

    def __init__(self, config: Mapping[str, Any], options: UpstreamOptions, name: str) -> None:
        settings = model_config(config)
        setattr(settings, "encoder_layerdrop" if settings.model_type == "whisper" else "layerdrop", 0.0)
        super().__init__(options, name, settings.num_hidden_layers + 1)
        self.config, self.dim = settings, settings.hidden_size
        self.sample_rate = int(config["features"]["sampling_rate"])
        self.frame_shift = frame_shift_of(config)

    @property
    @abstractmethod
    def _model_class(self) -> Any:
        """Class of the whole model, as checkpoints have it."""

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self._take(self._model_class.from_pretrained(None, config=self.config, state_dict=dict(weights)))

    def load_folder(self, path: str) -> None:
        """Takes the weights of a folder, or of a model of the Hugging Face Hub."""
        try:
            model, report = self._model_class.from_pretrained(path, config=self.config, output_loading_info=True)
        except Exception as error:  # transformers raises OSError, ValueError, TypeError and others of damaged files
            reason = (str(error).splitlines() or [""])[0]
            raise CheckpointError(f"{path}: transformers cannot load it ({type(error).__name__}: {reason})") from error
        if missing := sorted(key for key in report["missing_keys"] if key not in ("masked_spec_embed",)):
            raise CheckpointError(f"{path}: tensor {missing[0]!r} and {len(missing) - 1} more are missing")
        self._take(model)

    @abstractmethod
    def _take(self, model: nn.Module) -> None:
        """Keeps what is heard with: the encoder."""

    def _layers_of(self, encoder: Any, *args: Any, **kwargs: Any) -> list[Tensor]:
        with Capture() as capture:
            capture.input_of(encoder.layers[0])
            for layer in encoder.layers[:-1]:
                capture.output_of(layer)
            last = encoder(*args, **kwargs)[0]
        return [*capture.tensors, last]


class WhisperUpstream(_HuggingFace):
    """The encoder of a Whisper. It hears windows of 30 s; longer audio is heard window by window.

    Frames of the silence that fills the last window are left out.
    """

    mel_filters: Tensor

    def __init__(self, config: Mapping[str, Any], options: UpstreamOptions, name: str) -> None:
        from transformers import WhisperFeatureExtractor
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        super().__init__(config, options, name)
        features: Any = WhisperFeatureExtractor(**config["features"])
        self.hop, self.n_fft, self.window = features.hop_length, features.n_fft, features.n_samples
        if self.window != self.config.max_source_positions * 2 * self.hop:
            raise ConfigError(
                f"{name}: its feature extractor has windows of {self.window} samples, its encoder of "
                f"{self.config.max_source_positions * 2 * self.hop}"
            )
        self.model = WhisperEncoder(self.config)
        filters = torch.from_numpy(features.mel_filters).float()
        self.register_buffer("mel_filters", filters, persistent=False)

    @property
    def encoder(self) -> nn.Module:
        return self.model

    @property
    def lora_targets(self) -> str:
        return r"(.*\.)?layers\.\d+\.self_attn\.(q|k|v|out)_proj"

    @property
    def _model_class(self) -> Any:
        from transformers import WhisperModel

        return WhisperModel

    def _take(self, model: Any) -> None:
        self.model.load_state_dict(model.encoder.state_dict())

    def log_mel(self, audio: Float[Tensor, "windows samples"]) -> Float[Tensor, "windows mels frames"]:
        """What ``WhisperFeatureExtractor`` computes, on the device of the audio."""
        with torch.autocast(audio.device.type, enabled=False):
            window = torch.hann_window(self.n_fft, device=audio.device)
            spectrum = torch.stft(audio, self.n_fft, self.hop, window=window, return_complex=True)[..., :-1].abs() ** 2
            logs = (self.mel_filters.T @ spectrum).clamp(min=1e-10).log10()
            return (torch.maximum(logs, logs.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0

    def hidden_layers(self, audio: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        windows = math.ceil(audio.shape[1] / self.window)
        audio = functional.pad(audio, (0, windows * self.window - audio.shape[1])).unflatten(1, (windows, self.window))
        layers = self._layers_of(self.model, self.log_mel(audio.flatten(0, 1)))
        valid = torch.div(lengths + 2 * self.hop - 1, 2 * self.hop, rounding_mode="floor")
        return [layer.unflatten(0, (-1, windows)).flatten(1, 2) for layer in layers], valid.long()


class Wav2VecUpstream(_HuggingFace):
    """wav2vec 2.0, HuBERT, WavLM or Data2Vec, with a padded batch heard as its utterances one by one would be.

    Models of which the first convolution normalises over time (the base models) hear padding there; they get the
    utterances of a batch one after the other up to the end of the convolutions. Data2Vec hears it in its positional
    convolutions too, which are normalised in between, and gets utterances of different lengths one after the other.
    """

    def __init__(self, config: Mapping[str, Any], options: UpstreamOptions, name: str) -> None:
        from transformers import AutoModel

        super().__init__(config, options, name)
        if getattr(self.config, "add_adapter", False):
            raise ConfigError(f"{name}: it has a convolutional adapter behind its encoder (add_adapter)")
        self.do_normalize = bool(config["features"].get("do_normalize", True))
        self.model = AutoModel.from_config(self.config)

    @property
    def encoder(self) -> nn.Module:
        return self.model

    @property
    def lora_targets(self) -> str:
        if self.config.model_type == "wavlm":  # its attention reads the weights of its projections past their forward
            return r"(.*\.)?layers\.\d+\.feed_forward\.(intermediate|output)_dense"
        return r"(.*\.)?layers\.\d+\.attention\.(q|k|v|out)_proj"

    @property
    def _model_class(self) -> Any:
        return type(self.model)

    def _take(self, model: nn.Module) -> None:
        self.model.load_state_dict(model.state_dict())

    @property
    def shortest(self) -> int:
        """Samples of one frame."""
        samples = 1
        for kernel, stride in zip(reversed(self.config.conv_kernel), reversed(self.config.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    def hidden_layers(self, audio: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        if self.config.model_type != "data2vec-audio" or len(set(lengths.tolist())) == 1:
            return self._batch(audio, lengths)
        single = [
            self._batch(audio[row : row + 1, :length], lengths[row : row + 1])
            for row, length in enumerate(lengths.tolist())
        ]
        rows = zip(*(layers for layers, _ in single), strict=True)
        padded = [nn.utils.rnn.pad_sequence([layer[0] for layer in row], batch_first=True) for row in rows]
        return padded, torch.cat([valid for _, valid in single])

    def _batch(self, audio: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        if self.do_normalize:
            inside = torch.arange(audio.shape[1], device=audio.device) < lengths[:, None]
            count = lengths[:, None].clamp(min=1)
            centred = (audio - audio.sum(1, keepdim=True) / count).masked_fill(~inside, 0.0)
            audio = centred / (centred.square().sum(1, keepdim=True) / count + 1e-7).sqrt()
        audio = functional.pad(audio, (0, max(0, self.shortest - audio.shape[1])))
        lengths = lengths.clamp(min=self.shortest)
        valid = self.model._get_feat_extract_output_lengths(lengths).long()
        if getattr(self.config, "feat_extract_norm", "layer") == "group" and len(set(lengths.tolist())) > 1:
            each = [
                self.model.feature_extractor(row[None, :length])[0].T
                for row, length in zip(audio, lengths.tolist(), strict=True)
            ]
            features = nn.utils.rnn.pad_sequence(each, batch_first=True)
        else:
            features = self.model.feature_extractor(audio).transpose(1, 2)
        hidden = self.model.feature_projection(features)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        mask = torch.arange(hidden.shape[1], device=audio.device) < valid[:, None]
        return self._layers_of(self.model.encoder, hidden, attention_mask=mask), valid
