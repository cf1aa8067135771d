"""NeMo's classifiers, which hear a whole utterance and say one label. Importing this does not import NeMo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError, ConfigError
from .nemo_recogniser import autocast, refuse_prompt, restore, sample_rate_of
from .recogniser import RecogniserSettings

if TYPE_CHECKING:
    import numpy as np
    import torch
    from jaxtyping import Float

CLASSIFIERS = ("EncDecSpeakerLabelModel", "EncDecClassificationModel")


class NemoClassifier:
    """A model of a ``.nemo`` file whose transcript of an utterance is its label.

    Attributes:
        model: NeMo's.
        labels: of the classes, in the order of the model's outputs.

    Raises:
        CheckpointError: NeMo cannot restore it, or it does not hold the labels of its classes.
        ConfigError: a setting that it has no use for.
    """

    longest: float | None = None

    def __init__(self, path: Path, settings: RecogniserSettings, device: torch.device) -> None:
        model = restore(path, device)
        kind = type(model).__name__
        refuse_prompt(path, kind, settings)
        for name in ("beam", "decoder"):
            if getattr(settings, name):
                raise ConfigError(f"{path}: {kind} has no search, so no {name}")
        self.labels = [
            str(item) for item in model.cfg.get("labels") or (model.cfg.get("train_ds") or {}).get("labels") or []
        ]
        outputs = model.cfg.decoder.get("num_classes") or len(self.labels)
        if not self.labels or len(self.labels) != outputs:
            raise CheckpointError(
                f"{path}: has {len(self.labels)} labels for its {outputs} classes; restore it in NeMo, set cfg.labels "
                "to all of them in the order of its outputs, and save it again"
            )
        self.rate = sample_rate_of(model.cfg)
        self.model, self._settings, self._device = model, settings, device
        # The decoder of EncDecClassificationModel averages over the padding too.
        self._masks_padding = kind == "EncDecSpeakerLabelModel"

    def prompt_for(self, language: str | None, fields: Mapping[str, object]) -> dict[str, str]:
        """Nothing: it is not asked."""
        return {}

    def transcribe(self, samples: Sequence[Float[np.ndarray, " samples"]], prompt: Mapping[str, str]) -> list[str]:
        """Labels of a batch; an utterance that is too short for the model to say anything gets an empty one."""
        together: dict[int, list[int]] = {}
        for index, item in enumerate(samples):
            together.setdefault(0 if self._masks_padding else len(item), []).append(index)
        found: dict[int, str] = {}
        for group in together.values():
            found |= zip(group, self._labels([samples[index] for index in group]), strict=True)
        return [found[index] for index in range(len(samples))]

    def _labels(self, samples: Sequence[Float[np.ndarray, " samples"]]) -> list[str]:
        import torch

        audio = torch.nn.utils.rnn.pad_sequence([torch.as_tensor(item) for item in samples], batch_first=True)
        lengths = torch.tensor([len(item) for item in samples])
        with torch.inference_mode(), autocast(self._device, self._settings.precision):
            output = self.model(input_signal=audio.to(self._device), input_signal_length=lengths.to(self._device))
        logits = output[0] if isinstance(output, tuple) else output  # beside embeddings
        sound = logits.isfinite().all(dim=1).tolist()  # the deviation of a single frame is not
        return [
            self.labels[best] if sure else "" for best, sure in zip(logits.argmax(dim=1).tolist(), sound, strict=True)
        ]
