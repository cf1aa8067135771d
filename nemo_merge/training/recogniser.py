"""A model that transcribes samples, whichever library runs it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

PRECISIONS = ("fp32", "bf16", "fp16")
TASKS = ("transcribe", "translate")


@dataclass(frozen=True)
class RecogniserSettings:
    """How a model is run; what does not change its transcripts is elsewhere.

    Attributes:
        task: ``transcribe``, or ``translate`` for models that are asked by prompts.
        target_language: what a NeMo model translates into.
        beam: hypotheses that a beam search keeps; None for the decoding that the model was saved with.
        decoder: of a hybrid model: ``rnnt`` or ``ctc``; None for the one it was saved with.
        precision: of the computation, see :data:`PRECISIONS`; halves are torch's autocast.
        prompt: further slots of the prompt of a NeMo model, such as ``pnc: "yes"``.
    """

    task: str = "transcribe"
    target_language: str | None = None
    beam: int | None = None
    decoder: str | None = None
    precision: str = "fp32"
    prompt: Mapping[str, str] = field(default_factory=dict)


class Recogniser(Protocol):
    """A model in memory.

    Attributes:
        rate: samples per second that it expects.
        longest: seconds that it can hear at once, or None.
    """

    rate: int
    longest: float | None

    def prompt_for(self, language: str | None, fields: Mapping[str, object]) -> dict[str, str]:
        """What the model is asked for an utterance; nothing if it takes no prompts.

        Args:
            language: of the speech, if known.
            fields: of the manifest.

        Raises:
            ConfigError: the model does not know the language.
        """
        ...

    def transcribe(self, samples: Sequence[Float[np.ndarray, " samples"]], prompt: Mapping[str, str]) -> list[str]:
        """Texts of a batch, all of which are asked with one prompt."""
        ...


def check_model(path: Path) -> None:
    """Finds what is missing in a model before a library is imported to run it.

    Raises:
        CheckpointError: it does not exist, is damaged, or is of another kind.
        ConfigError: the library that runs it is not installed.
    """
    from ..checkpoints import open_checkpoint

    if not path.exists():
        raise CheckpointError(f"{path}: there is no such model")
    if path.is_dir():
        _check_whisper(path)
        if not _installed("transformers"):
            raise ConfigError(
                f"{path}: Whisper needs transformers, which is not installed; pip install 'nemo-merge[whisper]'"
            )
    elif path.suffix == ".nemo":
        open_checkpoint(path)
        if not _installed("nemo"):
            raise ConfigError(f"{path}: needs NeMo, which is not installed; pip install 'nemo-merge[nemo]'")
    else:
        raise CheckpointError(f"{path}: is neither a .nemo file nor the folder of a Hugging Face Whisper")
    if not _installed("lhotse"):
        raise ConfigError("audio is read by Lhotse, which is not installed; pip install 'nemo-merge[lhotse]'")


def open_recogniser(path: Path, settings: RecogniserSettings, device: str) -> Recogniser:
    """Loads a model; NeMo or transformers is imported here.

    Args:
        path: ``.nemo`` file, or folder of a Hugging Face Whisper.
        settings: how to run it.
        device: ``auto`` for a GPU if there is one, or as torch calls it.

    Raises:
        CheckpointError: the model cannot be restored.
        ConfigError: a setting that it has no use for, or a device that is not there.
    """
    import torch

    from ..checkpoints import open_checkpoint

    try:
        place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!r} cannot be used ({str(error).splitlines()[0]})") from error
    if settings.precision == "fp16" and place.type == "cpu":
        raise ConfigError("precision fp16 needs a GPU; on a CPU there is bf16")
    if path.is_dir():
        from .whisper_recogniser import WhisperRecogniser

        return WhisperRecogniser(path, settings, place)
    from .nemo_classifier import CLASSIFIERS, NemoClassifier

    with open_checkpoint(path) as checkpoint:
        kind = str(checkpoint.metadata.config.get("target")).rpartition(".")[2]
    if kind in CLASSIFIERS:
        return NemoClassifier(path, settings, place)
    from .nemo_recogniser import NemoRecogniser

    return NemoRecogniser(path, settings, place)


def model_digest(path: Path) -> str:
    """SHA-256 of a ``.nemo`` file, or of the names and digests of the files of a folder."""
    import hashlib

    from ..checkpoints._digests import sha256_of

    if path.is_file():
        return sha256_of(path)
    files = [file for file in sorted(path.iterdir()) if file.is_file() and file.suffix not in (".md", ".yaml")]
    listing = "".join(f"{file.name}\t{sha256_of(file)}\n" for file in files if not file.name.startswith("."))
    return hashlib.sha256(listing.encode()).hexdigest()


def primary_language(tag: str) -> str:
    """What models call a language: ``pt`` for ``pt-PT``.

    Example:
        >>> primary_language("pt_PT")
        'pt'
    """
    return tag.replace("_", "-").split("-")[0].lower()


def _installed(package: str) -> bool:
    return find_spec(package) is not None


def _check_whisper(path: Path) -> None:
    try:
        kind = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: no readable config.json, so it is no folder of a Hugging Face model") from error
    if kind != "whisper":
        raise CheckpointError(f"{path}: is a model of type {kind!r}; of Hugging Face's models, Whisper can be decoded")
    there = {file.name for file in path.iterdir()}
    missing = []
    if not there & {"preprocessor_config.json", "processor_config.json"}:
        missing.append("the feature extractor (preprocessor_config.json)")
    if "tokenizer.json" not in there and not {"vocab.json", "merges.txt"} <= there:
        missing.append("the tokenizer (tokenizer.json, or vocab.json and merges.txt)")
    if not any(name.endswith((".safetensors", ".bin")) for name in there):
        missing.append("the weights (model.safetensors)")
    if missing:
        raise CheckpointError(f"{path}: lacks {' and '.join(missing)}; copy them from the model it was made from")
