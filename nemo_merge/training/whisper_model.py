"""A Whisper in memory with what belongs to it: features, tokenizer, and the tokens that ask it for something."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, ConfigError, did_you_mean
from .recogniser import primary_language
from .trainable import mark

if TYPE_CHECKING:
    from .whisper_fine_tune import WhisperFineTuningJob

UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
"""Languages that Whisper writes without spaces between words; texts of the others begin with one."""
_MULTILINGUAL = 51865  # tokens of the smallest vocabulary with languages; the English one has 51864
_MASKING = ("mask_time_prob", "mask_time_length", "mask_time_min_masks", "mask_feature_prob", "mask_feature_length",
            "mask_feature_min_masks")  # fmt: skip


@dataclass(frozen=True)
class WhisperParts:
    """A Whisper and what belongs to it.

    Attributes:
        path: folder that it is from.
        model: ``WhisperForConditionalGeneration``.
        features: its feature extractor.
        tokenizer: its tokenizer.
    """

    path: Path
    model: Any
    features: Any
    tokenizer: Any

    @property
    def languages(self) -> Mapping[str, int]:
        """Token of every language, such as ``<|pt|>``; none for a Whisper of one language."""
        return getattr(self.model.generation_config, "lang_to_id", None) or {}

    @property
    def start(self) -> int:
        """Token that every text begins with."""
        return int(self.model.config.decoder_start_token_id)

    @property
    def end(self) -> int:
        """Token that every text ends with."""
        return int(self.model.config.eos_token_id)

    @property
    def longest(self) -> float:
        """Seconds that are heard at once."""
        return float(self.features.chunk_length)

    def labels(self, text: str, language: str | None, task: str) -> list[int]:
        """Tokens that the decoder learns to write: language, task, no timestamps, the text, the end.

        Args:
            text: what was said; spaces around it do not count.
            language: as Whisper calls it, from :meth:`language`; None for a Whisper of one language.
            task: ``transcribe`` or ``translate``.
        """
        settings = self.model.generation_config
        asked = [self.languages[f"<|{language}|>"], settings.task_to_id[task]] if language else []
        silent = getattr(settings, "no_timestamps_token_id", None)
        spaced = "" if language in UNSPACED or not text.strip() else " "
        words = self.tokenizer(spaced + text.strip(), add_special_tokens=False).input_ids
        return [*asked, *([] if silent is None else [int(silent)]), *words, self.end]

    def language(self, tag: str | None, place: str) -> str | None:
        """What Whisper calls a language; None for a Whisper of one language.

        Raises:
            ConfigError: it is not said, or Whisper does not know it.
        """
        if not self.languages:
            return None
        if not tag:
            raise ConfigError(
                f"{place}: says no language, which Whisper is asked in; write language: pt, or tags: {{lang: pt}} of "
                "its source"
            )
        known = [token.strip("<|>") for token in self.languages]
        name = primary_language(tag)
        if name not in known:
            raise ConfigError(f"{place}: {self.path} knows no language {tag!r}{did_you_mean(name, known)}")
        return name

    def prepare(self, job: WhisperFineTuningJob) -> None:
        """Marks what a job trains, adds its adapter, and sets how features are masked.

        Raises:
            ConfigError: a pattern matches nothing, or the adapter cannot be added.
        """
        from .. import adapters

        if job.trainable == "lora":
            adapters.inject_lora(self.model, **job.adapter)
        elif job.trainable == "bayesian_lora":
            adapters.inject_bayesian_lora(self.model, adapters.BayesianLoraConfig(**job.adapter))
        else:
            mark(self.model, job.trainable, encoder="model.encoder.")
            # Sinusoids, which Whisper does not learn.
            self.model.model.encoder.embed_positions.requires_grad_(False)
        self.model.config.use_cache = False
        if job.spec_augment is not None:
            self.model.config.apply_spec_augment = job.spec_augment is not False
            if isinstance(job.spec_augment, Mapping):
                self.model.config.update(dict(job.spec_augment))

    def restore_config(self) -> None:
        """Sets what training changed of the configuration back to what the base says."""
        from transformers import WhisperConfig

        before = WhisperConfig.from_pretrained(self.path, local_files_only=True)
        for key in ("use_cache", "apply_spec_augment", *_MASKING):
            setattr(self.model.config, key, getattr(before, key))


def load_whisper(path: Path) -> WhisperParts:
    """Loads a Whisper in float32, whatever it is stored in: half precision cannot hold small steps.

    Raises:
        CheckpointError: transformers cannot load it, or its ``generation_config.json`` does not fit its tokens.
    """
    import torch
    from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

    try:
        features = WhisperFeatureExtractor.from_pretrained(path, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        model: Any = WhisperForConditionalGeneration.from_pretrained(path, local_files_only=True, dtype=torch.float32)
    except Exception as error:  # transformers raises OSError, ValueError, TypeError and others of damaged files
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{path}: transformers cannot load it ({type(error).__name__}: {reason})") from error
    parts = WhisperParts(path, model, features, tokenizer)
    _check_tokens(parts)
    return parts


def check_masking(settings: Mapping[str, Any]) -> None:
    """Refuses what ``WhisperConfig`` has no field for.

    Raises:
        ConfigError: a setting does not exist.
    """
    for key in settings:
        if key not in _MASKING:
            raise ConfigError(f"spec_augment: there is no setting {key!r}{did_you_mean(key, _MASKING)}")


def _check_tokens(parts: WhisperParts) -> None:
    settings, known = parts.model.generation_config, parts.tokenizer.get_vocab()
    tables = {key: getattr(settings, key, None) for key in ("lang_to_id", "task_to_id")}
    multilingual = any(tables.values()) or parts.model.config.vocab_size >= _MULTILINGUAL
    for key, table in tables.items():
        if multilingual and not table:
            raise CheckpointError(
                f"{parts.path}: knows languages, but its generation_config.json has no {key}; copy that file from the "
                "model it was made from"
            )
    for token, number in {**(tables["lang_to_id"] or {}), **(tables["task_to_id"] or {})}.items():
        token = token if token.startswith("<|") else f"<|{token}|>"
        if known.get(token) != number:
            raise CheckpointError(
                f"{parts.path}: {token} is {number} in generation_config.json and {known.get(token)} in the tokenizer; "
                "take both from the model it was made from"
            )
