"""An encoder that fusion stands on: audio goes in, its hidden layers come out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError, did_you_mean

TRAINING = ("frozen", "full", "lora")
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class UpstreamOptions:
    """How an upstream is used.

    Attributes:
        layers: which hidden layers are fused, counted from 0, the input of the first block; all by default.
        train: ``frozen`` (evaluation mode for good, no gradients), ``full`` or ``lora``.
        lora: arguments of ``peft.LoraConfig`` for ``train: lora``.
        precision: of its computations: ``fp32``, ``bf16`` or ``fp16``; what comes out is float32.
    """

    layers: Sequence[int] | None = None
    train: str = "frozen"
    lora: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.train not in TRAINING:
            raise ConfigError(f"upstreams: train={self.train!r}{did_you_mean(str(self.train), TRAINING)}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"upstreams: precision={self.precision!r}{did_you_mean(str(self.precision), PRECISIONS)}")
        if self.layers is not None and (isinstance(self.layers, str) or not hasattr(self.layers, "__iter__")):
            raise ConfigError(f"upstreams: layers={self.layers!r} is no list of numbers")
        if not hasattr(self.lora, "items"):
            raise ConfigError(f"upstreams: lora={self.lora!r} is no mapping of peft.LoraConfig's arguments")
        if self.lora and self.train != "lora":
            raise ConfigError("upstreams: lora has settings, but train is not 'lora'")


class Upstream(nn.Module, ABC):
    """Base of the upstreams.

    Attributes:
        num_layers: hidden layers that come out.
        dim: their width.
        frame_shift: seconds from one frame to the next.
        sample_rate: of the audio that it hears, in Hz.
        options: how it is used.
        name: how messages call it.
    """

    sample_rate: int
    frame_shift: float
    dim: int

    def __init__(self, options: UpstreamOptions, name: str, depth: int) -> None:
        """Notes the options; ``depth`` is the number of hidden layers there are."""
        super().__init__()
        self.options, self.name = options, name
        self.layers = list(range(depth)) if options.layers is None else list(options.layers)
        if not self.layers or any(isinstance(i, bool) or not isinstance(i, int) for i in self.layers):
            raise ConfigError(f"{name}: layers={options.layers!r} is no list of numbers")
        if self.layers != sorted(set(self.layers)) or not 0 <= self.layers[0] <= self.layers[-1] < depth:
            raise ConfigError(f"{name}: layers={self.layers} are not some of 0 to {depth - 1}, in order")
        self.num_layers = len(self.layers)

    @abstractmethod
    def hidden_layers(
        self, audio: Float[Tensor, "batch samples"], lengths: Int[Tensor, " batch"]
    ) -> tuple[list[Float[Tensor, "batch time dim"]], Int[Tensor, " batch"]]:
        """All hidden layers, and valid frames."""

    @abstractmethod
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Takes the weights of a checkpoint of the whole model.

        Raises:
            CheckpointError: a tensor is missing or has another shape.
        """

    @property
    @abstractmethod
    def encoder(self) -> nn.Module:
        """What is trained, in part or by adapters."""

    @property
    @abstractmethod
    def lora_targets(self) -> str:
        """Modules of the encoder that get adapters unless the settings say otherwise."""

    def prepare(self) -> Self:
        """Freezes, or injects adapters; called once, when the weights are there.

        Raises:
            ConfigError: PEFT is not installed, or a setting is wrong.
        """
        if self.options.train == "lora":
            from ..adapters import inject_lora

            settings = {"target_modules": self.lora_targets, **self.options.lora}
            self.requires_grad_(False)
            try:
                inject_lora(self.encoder, settings)
            except ImportError as error:
                raise ConfigError(f"{self.name}: train=lora needs PEFT; pip install 'nemo-merge[peft]'") from error
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As torch's, but a frozen upstream stays in evaluation mode and without gradients, whatever its owner does."""
        if self.options.train == "frozen":
            self.requires_grad_(False)
            return super().train(False)
        return super().train(mode)

    def forward(
        self, audio: Float[Tensor, "batch samples"], lengths: Int[Tensor, " batch"]
    ) -> tuple[list[Float[Tensor, "batch dim time"]], Int[Tensor, " batch"]]:
        """The chosen hidden layers of a batch.

        Args:
            audio: samples between -1 and 1 at :attr:`sample_rate`.
            lengths: samples of each utterance; what lies behind does not matter.

        Returns:
            Layers, of the frames that an utterance has at most, and valid frames.
        """
        audio = audio[:, : int(lengths.max())].float()
        audio = audio.masked_fill(torch.arange(audio.shape[1], device=audio.device) >= lengths[:, None], 0.0)
        precision = PRECISIONS[self.options.precision]
        with (
            torch.no_grad() if self.options.train == "frozen" else nullcontext(),
            torch.autocast(audio.device.type, precision) if precision else nullcontext(),
        ):
            layers, valid = self.hidden_layers(audio, lengths)
        time = int(valid.max())
        return [layers[index][:, :time].transpose(1, 2).float() for index in self.layers], valid


class Capture(ExitStack):
    """Notes what goes through some modules while it is entered; nothing stays on the modules afterwards.

    NeMo's own way (``interctc_capture_at_layers``) remembers the layers of the first call for good, and knows no layer
    before the first block.

    Attributes:
        tensors: what went through, in the order in which it did.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Any] = []

    def output_of(self, module: nn.Module) -> None:
        self.callback(module.register_forward_hook(lambda _, args, output: self.tensors.append(_first(output))).remove)

    def input_of(self, module: nn.Module) -> None:
        self.callback(module.register_forward_pre_hook(lambda _, args: self.tensors.append(args[0])).remove)


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], prefix: str, name: str) -> None:
    """Loads the tensors whose names begin with ``prefix`` into a module that has names without it."""
    own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    try:
        module.load_state_dict(own, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{name}: its weights do not fit its configuration ({reason})") from error
