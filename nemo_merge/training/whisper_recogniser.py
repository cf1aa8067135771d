"""Whisper in the format of Hugging Face's transformers. Importing this does not import transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, ConfigError, did_you_mean
from .recogniser import RecogniserSettings, primary_language

if TYPE_CHECKING:
    import numpy as np
    import torch
    from jaxtyping import Float


class WhisperRecogniser:
    """A Whisper of a folder with weights, feature extractor and tokenizer; nothing is downloaded.

    Raises:
        CheckpointError: transformers cannot load it.
        ConfigError: a setting that it has no use for.
    """

    def __init__(self, path: Path, settings: RecogniserSettings, device: torch.device) -> None:
        import torch
        from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

        if settings.decoder or settings.prompt or settings.target_language:
            raise ConfigError(f"{path}: decoder, prompt and target_language are not for Whisper")
        try:
            self._features = WhisperFeatureExtractor.from_pretrained(path, local_files_only=True)
            self._tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
            model: Any = WhisperForConditionalGeneration.from_pretrained(  # as it is stored, it would not fit features
                path, local_files_only=True, dtype=torch.float32
            )
        except Exception as error:  # transformers raises OSError, ValueError, TypeError and others of damaged files
            reason = (str(error).splitlines() or [""])[0]
            raise CheckpointError(f"{path}: transformers cannot load it ({type(error).__name__}: {reason})") from error
        self._model = model.to(device).eval()
        self._path, self._settings, self._device = path, settings, device
        self.rate = int(self._features.sampling_rate)
        self.longest: float | None = float(self._features.chunk_length)
        self._languages: dict[str, Any] = getattr(model.generation_config, "lang_to_id", None) or {}
        if settings.task == "translate" and not self._languages:
            raise ConfigError(f"{path}: knows one language only and cannot translate")

    def prompt_for(self, language: str | None, fields: Mapping[str, object]) -> dict[str, str]:
        """The language; without one, Whisper finds it itself."""
        if not self._languages or not language:
            return {}
        known = [token[2:-2] for token in self._languages]
        name = primary_language(language)
        if name not in known:
            raise ConfigError(f"{self._path}: knows no language {language!r}{did_you_mean(name, known)}")
        return {"language": name}

    def transcribe(self, samples: Sequence[Float[np.ndarray, " samples"]], prompt: Mapping[str, str]) -> list[str]:
        """Texts of a batch."""
        import torch

        given = self._features(
            list(samples), sampling_rate=self.rate, return_tensors="pt", return_attention_mask=True
        ).to(self._device)
        options: dict[str, Any] = {"num_beams": self._settings.beam} if self._settings.beam else {}
        if self._languages:
            options |= {"task": self._settings.task, "language": prompt.get("language")}
        precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self._settings.precision)
        with torch.inference_mode(), torch.autocast(self._device.type, precision) if precision else nullcontext():
            tokens = self._model.generate(given.input_features, attention_mask=given.attention_mask, **options)
        return [text.strip() for text in self._tokenizer.batch_decode(tokens, skip_special_tokens=True)]
