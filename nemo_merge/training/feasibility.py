"""Counts utterances from which CTC cannot learn: they have fewer frames than their transcript needs.

Their loss is infinite, and training frameworks set it to zero: they teach nothing, and hide that they do. Characters
after subsampling by eight are such a case, in which training "succeeds" without learning anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice, pairwise
from typing import Any

from ..errors import ConfigError
from .jobs import Report

_MOST = 10_000  # utterances to look at; a share needs no more
_PROBE = 10.0  # seconds


def check_feasible(model: Any, loader: Mapping[str, Any], report: Report) -> tuple[int, int]:
    """Counts the utterances, among the first ten thousand, that are too fast for a model's CTC loss.

    Transcripts that NeMo's parser of characters gives up on, such as digits in some places, would end training with a
    traceback; they are found here too.

    An utterance needs a frame per token, and one more between equal neighbours. Frames are counted from the length of
    the audio and the model's frame rate, and are right to within one.

    Args:
        model: NeMo model; one without CTC has nothing to count.
        loader: settings of the loader for training.
        report: called if there are any.

    Returns:
        How many are too fast, of how many.

    Raises:
        ConfigError: most of them are, or NeMo cannot read a transcript.
    """
    tokenize = _tokenizer(model, loader)
    if tokenize is None:
        return 0, 0
    rate = frames_per_second(model)
    bad = seen = 0
    unreadable: list[str] = []
    for cut in islice(_cuts(loader), _MOST):
        texts = [(item.text or "", tokenize(item.text or "", item.language)) for item in cut.supervisions]
        unreadable += [text for text, tokens in texts if tokens is None]
        tokens = [token for _, some in texts for token in some or ()]
        bad += cut.duration * rate + 1 < len(tokens) + sum(a == b for a, b in pairwise(tokens))
        seen += 1
    if not seen:
        raise ConfigError("train: holds no utterances")
    if unreadable:
        raise ConfigError(
            f"train: NeMo's parser {loader.get('parser', 'en')!r} cannot read {len(unreadable)} of {seen} transcripts, "
            f"for example {unreadable[0][:80]!r}, and training would stop there; write numbers and signs as they are "
            "spoken, or pass loader.parser=base, which leaves out what is not among the labels"
        )
    said = f"{bad} of {seen} utterances have fewer frames ({rate:.1f} a second) than their transcript has tokens"
    if bad > seen / 2:
        raise ConfigError(
            f"train: {said}; CTC cannot learn from them. Take a base with less subsampling or longer tokens (word "
            "pieces), and see that durations and transcripts belong together"
        )
    if bad:
        report(f"warning: {said}; CTC learns nothing from those")
    return bad, seen


def frames_per_second(model: Any) -> float:
    """Frames of the encoder's output per second of audio, measured on silence."""
    import torch

    rate = int(model.cfg.preprocessor.get("sample_rate", 16000))
    training = model.training
    model.eval()
    with torch.inference_mode():
        silence = torch.zeros(1, int(_PROBE * rate), device=model.device)
        length = torch.tensor([silence.shape[1]], device=model.device)
        features, frames = model.preprocessor(input_signal=silence, length=length)
        _, encoded = model.encoder(audio_signal=features, length=frames)
    model.train(training)
    return float(encoded[0]) / _PROBE


def _tokenizer(model: Any, loader: Mapping[str, Any]) -> Any:
    """Tokens of a transcript as the loader makes them; None for a model without CTC."""
    from nemo.collections.asr.losses.ctc import CTCLoss
    from nemo.collections.common.parts.preprocessing.parsers import make_parser
    from nemo.collections.common.tokenizers.aggregate_tokenizer import TokenizerWrapper

    if not any(isinstance(getattr(model, name, None), CTCLoss) for name in ("loss", "ctc_loss")):
        return None
    if hasattr(model, "tokenizer"):
        return TokenizerWrapper(model.tokenizer)
    labels = loader.get("labels") or list(model.cfg.labels)
    return TokenizerWrapper(make_parser(labels=labels, name=loader.get("parser", "en")))


def _cuts(loader: Mapping[str, Any]) -> Any:
    from nemo.collections.common.data.lhotse.cutset import read_cutset_from_config
    from nemo.collections.common.data.lhotse.dataloader import make_structured_with_schema_warnings
    from omegaconf import OmegaConf

    config = OmegaConf.create({**loader, "metadata_only": True, "force_finite": True})
    for key in ("labels", "use_lhotse"):
        config.pop(key, None)
    cuts, _ = read_cutset_from_config(make_structured_with_schema_warnings(config))
    return cuts
