"""Makes an untrained attention model (NeMo's Canary): its tokenizers from transcripts, its encoder from a CTC model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..errors import ConfigError
from .jobs import Job, Report, is_first_process
from .trainer import save_model


@dataclass(frozen=True)
class AttentionModelJob(Job):
    """A model to make; :class:`~nemo_merge.training.fine_tune.FineTuningJob` trains it.

    Attributes:
        output: the ``.nemo`` to write.
        model: NeMo's configuration of an ``EncDecMultiTaskModel`` without ``tokenizer``.
        cuts: Lhotse cut manifests, of whose transcripts the tokenizers are made, one per language.
        vocabulary: number of tokens of each language; fewer where the transcripts do not give as many.
        encoder: ``.nemo`` of a model with the same encoder, whose weights it takes; new weights by default.
        seed: of the new weights.
    """

    kind: ClassVar[str] = "attention_model"

    output: str | Path
    model: Mapping[str, Any]
    cuts: Sequence[str | Path]
    vocabulary: int = 128
    encoder: str | Path | None = None
    seed: int = 0

    def run(self, report: Report) -> None:
        make_attention_model(self)


def make_attention_model(job: AttentionModelJob) -> Path:
    """Makes a model and saves it; the same job gives the same weights.

    Returns:
        Path of the ``.nemo``.

    Raises:
        ConfigError: the transcripts say no language, or the encoders differ.
    """
    import lightning.pytorch as lightning
    from nemo.collections.asr.models import EncDecMultiTaskModel
    from nemo.utils import AppState
    from omegaconf import OmegaConf

    texts = _texts_by_language(job.cuts)
    with tempfile.TemporaryDirectory() as folder:
        config = {**job.model, "tokenizer": _tokenizers(texts, job.vocabulary, Path(folder))}
        # A file that was restored before in this process: NeMo would look for the tokenizers in it.
        AppState().model_restore_path = None
        lightning.seed_everything(job.seed, verbose=False)
        model = EncDecMultiTaskModel(cfg=OmegaConf.create(config))
        if job.encoder is not None:
            _take_encoder(model, job.encoder)
        if is_first_process():
            save_model(model, Path(job.output))
    return Path(job.output)


def _texts_by_language(cuts: Iterable[str | Path]) -> dict[str, list[str]]:
    from lhotse import load_manifest_lazy

    texts: dict[str, list[str]] = {}
    for path in cuts:
        for cut in load_manifest_lazy(path):
            for item in cut.supervisions:
                if not item.language:
                    raise ConfigError(f"{path}: {item.id} does not say the language of its text")
                texts.setdefault(item.language, []).append(item.text or "")
    return texts


def _tokenizers(texts: Mapping[str, Sequence[str]], size: int, folder: Path) -> dict[str, Any]:
    """Configuration of Canary's aggregate tokenizer, whose files are made in a folder."""
    from nemo.collections.common.tokenizers.canary_tokenizer import CanaryTokenizer
    from nemo.collections.common.tokenizers.sentencepiece_tokenizer import create_spt_model

    special = folder / "special"
    CanaryTokenizer.build_special_tokenizer([*texts, "transcribe", "translate"], special)
    languages: dict[str, Any] = {"spl_tokens": {"dir": str(special), "type": "bpe"}}
    for language, lines in sorted(texts.items()):
        place = folder / language
        place.mkdir()
        corpus = place / "text.txt"
        corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
        create_spt_model(str(corpus), size, -1, False, output_dir=str(place))
        languages[language] = {"dir": str(place), "type": "bpe"}
    target = f"{CanaryTokenizer.__module__}.{CanaryTokenizer.__name__}"
    return {"dir": None, "type": "agg", "langs": languages, "custom_tokenizer": {"_target_": target}}


def _take_encoder(model: Any, path: str | Path) -> None:
    from ..checkpoints import open_checkpoint

    with open_checkpoint(path) as checkpoint:
        weights = {
            name.removeprefix("encoder."): tensor.clone()
            for name, tensor in checkpoint.items()
            if name.startswith("encoder.")
        }
    try:
        model.encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(f"{path}: its encoder is another one: {str(error).splitlines()[-1].strip()}") from error
