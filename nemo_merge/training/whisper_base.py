"""What a fine-tuning of Whisper starts from: a folder, or a model of the Hugging Face hub."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..errors import CheckpointError, ConfigError
from .recogniser import check_model

_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_WANTED = ("*.json", "*.txt", "model.safetensors", "model-*-of-*.safetensors")


def is_whisper(base: str | Path) -> bool:
    """Whether a base is Whisper's: a folder with its configuration, or the name of a model of the hub.

    Example:
        >>> is_whisper("openai/whisper-large-v3"), is_whisper("models/base.nemo")
        (True, False)
    """
    path = Path(base)
    if path.is_dir():
        try:
            config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(config, dict) and config.get("model_type") == "whisper"
    return is_hub_name(base)


def is_hub_name(base: str | Path) -> bool:
    """Whether a base is ``owner/name`` of the hub, rather than a path."""
    name = str(base)
    return not Path(name).exists() and not name.endswith(".nemo") and _HUB.fullmatch(name) is not None


def whisper_folder(base: str | Path, revision: str | None = None) -> Path:
    """The folder of a base; a model of the hub is downloaded into Hugging Face's cache, unless it is there.

    Args:
        base: folder, or ``owner/name``.
        revision: commit, branch or tag of a model of the hub.

    Raises:
        CheckpointError: it cannot be downloaded, or is no complete Whisper.
        ConfigError: a library that is needed is not installed.
    """
    folder = _download(str(base), revision) if is_hub_name(base) else Path(base)
    check_model(folder)
    return folder


def _download(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigError(f"{name}: downloading needs huggingface_hub; pip install huggingface_hub") from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_WANTED)))
    except Exception as error:  # the hub's own classes change from release to release
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{name}: neither a folder here, nor to be had from the Hugging Face hub ({reason})"
        ) from error
