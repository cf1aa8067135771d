"""NeMo's recognisers: CTC, RNN-T, TDT, hybrid and attention (Canary). Importing this does not import NeMo."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, ConfigError, did_you_mean
from .fused_models import accept_fused
from .recogniser import RecogniserSettings, primary_language

if TYPE_CHECKING:
    import numpy as np
    import torch
    from jaxtyping import Float

_LANGUAGE = re.compile(r"[a-z]{2}(-\w+)?")


def restore(path: Path, device: torch.device) -> Any:
    """The model of a ``.nemo`` file, to be run.

    Raises:
        CheckpointError: NeMo cannot restore it.
    """
    from nemo.collections.asr.models import ASRModel

    try:
        accept_fused(path)
        return ASRModel.restore_from(str(path), map_location=device).eval()
    except Exception as error:  # NeMo raises whatever the class in the file raises
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{path}: NeMo cannot restore it ({type(error).__name__}: {reason})") from error


def sample_rate_of(config: Any) -> int:
    """Samples per second of the audio that a model of NeMo's expects, by its configuration."""
    return int(config.get("sample_rate") or (config.get("preprocessor") or {}).get("sample_rate") or 16000)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Computation in halves, unless the precision is ``fp32``."""
    import torch

    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, kind) if kind else nullcontext()


def refuse_prompt(path: Path, kind: str, settings: RecogniserSettings) -> None:
    """What only models with prompts have a use for.

    Raises:
        ConfigError: there is such a setting.
    """
    for name in ("target_language", "prompt"):
        if getattr(settings, name):
            raise ConfigError(f"{path}: {kind} takes no prompt, so no {name}")
    if settings.task != "transcribe":
        raise ConfigError(f"{path}: {kind} cannot {settings.task}")


class NemoRecogniser:
    """A model of a ``.nemo`` file, decoded by its own ``transcribe``.

    Attributes:
        model: NeMo's.

    Raises:
        CheckpointError: NeMo cannot restore it.
        ConfigError: a setting that it has no use for.
    """

    longest: float | None = None

    def __init__(self, path: Path, settings: RecogniserSettings, device: torch.device) -> None:
        model = restore(path, device)
        self.model, self._path, self._settings, self._device = model, path, settings, device
        self.rate = sample_rate_of(model.cfg)
        self._slots = list(model.prompt.get_slots("user")) if hasattr(model, "prompt") else []
        self._check_prompt()
        if settings.decoder or settings.beam:
            self._choose_decoding()

    def prompt_for(self, language: str | None, fields: Mapping[str, object]) -> dict[str, str]:
        """Slots that the settings or the manifest fill; the model's own defaults fill the rest."""
        if not self._slots:
            return {}
        filled = {slot: str(fields[slot]) for slot in self._slots if fields.get(slot) is not None}
        prompt = {**filled, **self._settings.prompt}
        for slot in ("source_lang", "target_lang", "task"):
            prompt.pop(slot, None)
        source = self._token_of(language or self._usual_language())
        target = self._settings.target_language or filled.get("target_lang")
        target = self._token_of(target) if target else source
        translates = self._settings.task == "translate"
        if translates and target == source:
            raise ConfigError(f"{self._path}: say into which language it translates (target_language)")
        prompt |= {"source_lang": source, "target_lang": target}
        if "task" in self._slots:
            prompt["task"] = "s2t_translation" if translates or target != source else "asr"
        return prompt

    def transcribe(self, samples: Sequence[Float[np.ndarray, " samples"]], prompt: Mapping[str, str]) -> list[str]:
        """Texts of a batch."""
        import torch

        config = self.model.get_transcribe_config()
        config.batch_size, config.num_workers, config.verbose = len(samples), 0, False
        if self._slots:
            # NeMo would cut the audio of a batch of one into pieces, and put their transcripts together.
            config = type(config)(**{**vars(config), "prompt": dict(prompt), "enable_chunking": False})
        else:
            config.pad_min_duration = (
                0.0  # NeMo pads samples to a second, but not files, except for models with prompts
            )
        with torch.inference_mode(), autocast(self._device, self._settings.precision):
            heard = self.model.transcribe(list(samples), override_config=config)
        if isinstance(heard, tuple):  # the best hypotheses, and all of them
            heard = heard[0]
        best = [item[0] if isinstance(item, list) else item for item in heard]
        return [item if isinstance(item, str) else item.text for item in best]

    def _token_of(self, language: str) -> str:
        """The language as the model has it."""
        known = [token[2:-2] for token in self.model.tokenizer.special_tokens if token.startswith("<|")]
        for name in (language, primary_language(language)):
            if name in known:
                return name
        languages = [name for name in known if _LANGUAGE.fullmatch(name)]
        raise ConfigError(
            f"{self._path}: knows no language {language!r}{did_you_mean(primary_language(language), languages)}"
        )

    def _usual_language(self) -> str:
        """The language that the model takes speech to be in, if nothing else is said."""
        for turn in self.model.prompt.get_default_dialog_slots():
            if usual := (turn["slots"].get("source_lang") or "").strip("<|>"):
                return str(usual)
        raise ConfigError(f"{self._path}: must be told the language of the speech (language)")

    def _check_prompt(self) -> None:
        settings = self._settings
        if not self._slots:
            refuse_prompt(self._path, type(self.model).__name__, settings)
        for slot in settings.prompt:
            if slot not in self._slots:
                raise ConfigError(f"{self._path}: its prompt has no slot {slot!r}{did_you_mean(slot, self._slots)}")

    def _choose_decoding(self) -> None:
        from omegaconf import OmegaConf, open_dict

        model, settings = self.model, self._settings
        hybrid = hasattr(model, "cur_decoder")
        if settings.decoder and not hybrid:
            raise ConfigError(f"{self._path}: is no hybrid model, so there is no decoder to choose")
        kind = (settings.decoder or model.cur_decoder) if hybrid else _kind(model)
        held = model.cfg.aux_ctc.decoding if hybrid and kind == "ctc" else model.cfg.get("decoding")
        config = OmegaConf.create({} if held is None else OmegaConf.to_container(held, resolve=True))
        if settings.beam:
            strategy = {"ctc": "beam_batch", "rnnt": "malsd_batch", "attention": "beam"}.get(kind or "")
            if strategy is None:
                raise ConfigError(f"{self._path}: there is no beam search for {type(model).__name__}")
            with open_dict(config):
                config.strategy = strategy
                config.setdefault("beam", {})
                config.beam.beam_size = settings.beam
                config.beam.return_best_hypothesis = True
        try:
            if hybrid:
                model.change_decoding_strategy(config, decoder_type=kind)
            else:
                model.change_decoding_strategy(config)
        except Exception as error:  # decoders refuse in many ways what they cannot do
            reason = (str(error).splitlines() or [""])[0]
            what = f"beam search of {settings.beam} hypotheses" if settings.beam else f"decoder {settings.decoder}"
            raise ConfigError(f"{self._path}: has no {what} ({type(error).__name__}: {reason})") from error


def _kind(model: Any) -> str | None:
    """What decodes: ``ctc``, ``rnnt`` or ``attention``."""
    if hasattr(model, "prompt"):
        return "attention"
    if hasattr(model, "joint"):
        return "rnnt"
    return "ctc" if hasattr(model, "change_decoding_strategy") else None
