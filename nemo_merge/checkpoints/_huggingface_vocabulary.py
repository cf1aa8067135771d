"""The vocabulary of a Hugging Face folder, from whichever of its tokenizer files there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..vocabulary import Token, Vocabulary

_UNUSED = "\0unused"  # in place of a language: a row between tokens that no token has


def read_vocabulary(folder: Path, read_json: Callable[[Path], dict[str, Any]]) -> Vocabulary | None:
    """The tokens of a model by their numbers; None when there are no files that tell them.

    Args:
        folder: the model folder.
        read_json: reads a file, or raises CheckpointError.

    Raises:
        CheckpointError: a file is damaged, or the files give one number to two tokens.
    """
    files = {name: read_json(folder / name) for name in _READERS if (folder / name).is_file()}
    numbers: dict[int, str] = {}
    for name, content in files.items():
        for text, number in _READERS[name](content):
            # Added tokens come last and win: some files hold a placeholder where a special token stands.
            if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                raise CheckpointError(f"{folder / name}: the token {text!r} has no number")
            numbers[number] = text
    if not numbers:
        return None
    count = max(numbers) + 1
    if count > 1 << 22:
        raise CheckpointError(f"{folder}: its tokenizer numbers tokens up to {count}, which is too many")
    tokens = tuple(Token("", numbers[row]) if row in numbers else Token(_UNUSED, str(row)) for row in range(count))
    rules = {}
    model = files.get("tokenizer.json", {}).get("model")
    if isinstance(model, Mapping):
        rules = {"": {"segmentation": str(model.get("type"))}}
    try:
        return Vocabulary("huggingface", tokens, rules)
    except ValueError as error:
        raise CheckpointError(f"{folder}: its tokenizer cannot be used, {error}") from error


def _tokenizer_json(content: Mapping[str, Any]) -> list[tuple[str, Any]]:
    model = content.get("model")
    found: list[tuple[str, Any]] = []
    if isinstance(model, Mapping):
        vocabulary = model.get("vocab")
        if isinstance(vocabulary, Mapping):
            found += vocabulary.items()
        elif isinstance(vocabulary, list):  # unigram: pairs of piece and score
            found += [(str(pair[0]), row) for row, pair in enumerate(vocabulary) if isinstance(pair, list) and pair]
    added = content.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        if isinstance(token, Mapping):
            found.append((str(token.get("content")), token.get("id")))
    return found


def _plain(content: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return list(content.items())


def _tokenizer_config(content: Mapping[str, Any]) -> list[tuple[str, Any]]:
    added = content.get("added_tokens_decoder")
    if not isinstance(added, Mapping):
        return []
    return [
        (str(token.get("content")), int(number) if str(number).isdigit() else None)
        for number, token in added.items()
        if isinstance(token, Mapping)
    ]


_READERS: dict[str, Callable[[Mapping[str, Any]], list[tuple[str, Any]]]] = {
    "vocab.json": _plain,
    "tokenizer.json": _tokenizer_json,
    "added_tokens.json": _plain,
    "tokenizer_config.json": _tokenizer_config,
}
