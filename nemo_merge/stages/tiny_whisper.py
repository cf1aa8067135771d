"""A tiny Whisper with random weights: it recognises nothing, and everything that is done with Whisper works on it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_TASKS = ("translate", "transcribe")
_END, _START, _SILENT = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"


def write_tiny_whisper(
    folder: Path,
    texts: Iterable[str],
    *,
    languages: Sequence[str] = ("en", "pt", "es"),
    tokens: int = 300,
    mels: int = 16,
    width: int = 32,
    layers: int = 1,
    heads: int = 2,
    seconds: int = 10,
    most: int = 64,
    init_std: float = 0.02,
    seed: int = 0,
) -> Path:
    """Writes a folder as ``save_pretrained`` does: configuration, weights, features, and a tokenizer trained here.

    Args:
        folder: where to.
        texts: what the tokenizer's merges are learnt from; bytes of all other texts are there too.
        languages: that it can be asked in.
        tokens: of the vocabulary, special ones apart; 256 of them are the bytes.
        mels: bands of the features.
        width: of the layers; their feed-forward parts are four times as wide.
        layers: of the encoder, and of the decoder.
        heads: of the attention.
        seconds: that it hears at once.
        most: tokens that it writes at most.
        init_std: spread of the weights.
        seed: of the weights.

    Returns:
        The folder.
    """
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    tokenizer, special = _tokenizer(texts, tokens, languages)
    common: dict[str, Any] = {
        "decoder_start_token_id": special[_START],
        "bos_token_id": special[_END],
        "eos_token_id": special[_END],
        "pad_token_id": special[_END],
    }
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=mels,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_source_positions=50 * seconds,
        max_target_positions=most,
        init_std=init_std,
        **common,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        **common,
        max_length=most,
        is_multilingual=True,
        lang_to_id={f"<|{name}|>": special[f"<|{name}|>"] for name in languages},
        task_to_id={name: special[f"<|{name}|>"] for name in _TASKS},
        no_timestamps_token_id=special[_SILENT],
    )
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=mels, chunk_length=seconds).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(texts: Iterable[str], tokens: int, languages: Sequence[str]) -> tuple[Any, dict[str, int]]:
    """Byte-level BPE as Whisper's, and the numbers of the special tokens, which come last."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
    from transformers import WhisperTokenizer

    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learnt.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=tokens, initial_alphabet=alphabet, show_progress=False)
    )
    made = json.loads(learnt.to_str())["model"]
    names = [_END, _START, *(f"<|{name}|>" for name in (*languages, *_TASKS)), _SILENT]
    special = {name: len(made["vocab"]) + index for index, name in enumerate(names)}
    merges = [tuple(pair) for pair in made["merges"]]
    tokenizer = WhisperTokenizer(vocab={**made["vocab"], **special}, merges=merges)
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    return tokenizer, special
