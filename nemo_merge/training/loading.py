"""Settings of NeMo's Lhotse loader that depend on the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import ConfigError, did_you_mean
from .nemo_recogniser import sample_rate_of

_READING = ("text_field", "lang_field", "prompt_format", "channel_selector", "use_bos_token")
_PARSER = ("labels", "parser", "unk_index", "blank_index", "normalize_transcripts", "use_lhotse")


def inherited(model: Any) -> dict[str, Any]:
    """How the base's data was read: its sampling rate, fields of the manifest and prompts."""
    known = model.cfg.get("train_ds") or {}
    options = {key: known[key] for key in _READING if known.get(key) is not None}
    if (prompt := model.cfg.get("prompt_format")) is not None:  # models with prompts know their own
        options["prompt_format"] = prompt
        options.setdefault("lang_field", "target_lang")
    return {**options, "sample_rate": sample_rate_of(model.cfg)}


def check_loader(options: Iterable[str]) -> None:
    """Refuses settings that NeMo would ignore with a warning.

    Raises:
        ConfigError: a setting does not exist.
    """
    from dataclasses import fields

    from nemo.collections.common.data.lhotse.dataloader import LhotseDataLoadingConfig

    known = [*(item.name for item in fields(LhotseDataLoadingConfig)), *_PARSER, *_READING]
    for key in options:
        if key not in known:
            raise ConfigError(f"loader: NeMo's Lhotse loader has no setting {key!r}{did_you_mean(key, known)}")
