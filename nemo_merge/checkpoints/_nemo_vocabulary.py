"""The vocabulary of a ``.nemo``: reading it, and growing configuration and tokenizer files together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ..errors import CheckpointError
from ..vocabulary import Token, Vocabulary
from ._checkpoint import Checkpoint
from ._tokenizers import Piece, SentencePieces, grow, parse, vocab_table, vocab_text

Place = tuple[str, ...]

_LISTS: tuple[Place, ...] = (
    ("labels",), ("decoder", "vocabulary"), ("joint", "vocabulary"), ("aux_ctc", "decoder", "vocabulary"),
)  # fmt: skip
_DATA = ("train_ds", "validation_ds", "test_ds")
_COUNTS: tuple[Place, ...] = (
    ("decoder", "num_classes"), ("decoder", "vocab_size"), ("joint", "num_classes"),
    ("aux_ctc", "decoder", "num_classes"),
)  # fmt: skip
_PADDED_COUNTS: tuple[Place, ...] = (("transf_decoder", "config_dict", "vocab_size"), ("head", "num_classes"))
_MODEL, _VOCAB, _TABLE = "model_path", "vocab_path", "spe_tokenizer_vocab"
_PREFIX = "nemo:"


@dataclass
class Changes:
    """How a ``.nemo`` differs from the one it is made from.

    Attributes:
        config: new values by place in the configuration.
        artefacts: new packed files by name.
    """

    config: dict[Place, Any] = field(default_factory=dict)
    artefacts: dict[str, bytes] = field(default_factory=dict)


def read_vocabulary(model: Checkpoint) -> Vocabulary | None:
    """The tokens of a model; None when its configuration has neither tokenizer nor labels.

    Raises:
        CheckpointError: a tokenizer file is missing, damaged, or of a kind that is not supported.
    """
    config = model.metadata.config
    tokenizer = config.get("tokenizer")
    if not isinstance(tokenizer, Mapping):
        return _characters(model)
    try:
        if str(tokenizer.get("type", "")).lower() != "agg":
            kind, texts, rules = _tokenizer(model, ("tokenizer",))
            return Vocabulary(kind, tuple(Token("", text) for text in texts), {"": rules})
        tokens, by_language = [], {}
        for language in _languages(model):
            _, texts, by_language[language] = _tokenizer(model, ("tokenizer", "langs", language))
            tokens += [Token(language, text) for text in texts]
        return Vocabulary("aggregate", tuple(tokens), by_language)
    except ValueError as error:
        raise CheckpointError(f"{model.path}: its tokenizer cannot be used, {error}") from error


def grow_vocabulary(model: Checkpoint, wanted: Vocabulary, donors: Sequence[Checkpoint]) -> Changes:
    """What must change in ``model`` for it to have the tokens ``wanted``, which begin with its own.

    Pieces and languages that it lacks come from the first donor that has them.

    Raises:
        CheckpointError: its tokenizer cannot grow, or a token means something else in a donor.
    """
    own = read_vocabulary(model)
    assert own is not None  # the caller has compared its tokens
    changes = Changes()
    if own.kind == "wordpiece":
        raise CheckpointError(
            f"{model.path}: a WordPiece vocabulary cannot grow, because NeMo looks its special tokens up elsewhere; "
            "pass vocabulary=base"
        )
    if own.kind == "sentencepiece":
        _grow_pieces(model, ("tokenizer",), wanted.languages[""], donors, changes)
    elif own.kind == "aggregate":
        for language, texts in wanted.languages.items():
            place = ("tokenizer", "langs", language)
            if language in own.languages:
                _grow_pieces(model, place, texts, donors, changes)
                continue
            holders = [donor for donor in donors if _lookup(donor.metadata.config, place) is not None]
            _copy_language(holders[0], place, changes)
            _grow_pieces(holders[0], place, texts, holders[1:], changes)
    _grow_config(model, own, wanted, changes)
    return changes


def _characters(model: Checkpoint) -> Vocabulary | None:
    config = model.metadata.config
    found = {".".join(place): _lookup(config, place) for place in _LISTS}
    lists = {place: value for place, value in found.items() if value and isinstance(value, list)}
    if not lists:
        return None
    (first, labels), *others = lists.items()
    for place, value in others:
        if value != labels:
            raise CheckpointError(f"{model.path}: its configuration has other tokens in {place} than in {first}")
    try:
        return Vocabulary("characters", tuple(Token("", str(label)) for label in labels))
    except ValueError as error:
        raise CheckpointError(f"{model.path}: {first} of its configuration cannot be used, {error}") from error


def _languages(model: Checkpoint) -> list[str]:
    languages = _lookup(model.metadata.config, ("tokenizer", "langs"))
    if not isinstance(languages, Mapping) or not languages:
        raise CheckpointError(f"{model.path}: its aggregate tokenizer names no languages (tokenizer.langs)")
    return [str(language) for language in languages]


def _tokenizer(model: Checkpoint, place: Place) -> tuple[str, list[str], dict[str, str]]:
    """Kind, tokens and rules of one tokenizer that is not an aggregate."""
    entry = _lookup(model.metadata.config, place)
    shown = f"{model.path} ({'.'.join(place)})"
    kind = str(entry.get("type", "")).lower() if isinstance(entry, Mapping) else ""
    if kind == "bpe":
        pieces = _pieces(model, place)
        return "sentencepiece", [piece.text for piece in pieces.pieces], pieces.rules
    if kind == "wpe":
        lines = _content(model, place, _VOCAB).decode("utf-8", "replace").removesuffix("\n").split("\n")
        return "wordpiece", lines, {"segmentation": "wordpiece"}
    raise CheckpointError(f"{shown}: tokenizers of the type {kind or 'none'!r} are not supported; known: agg, bpe, wpe")


def _pieces(model: Checkpoint, place: Place) -> SentencePieces:
    return parse(_content(model, place, _MODEL), f"{model.path} ({'.'.join((*place, _MODEL))})")


def _content(model: Checkpoint, place: Place, key: str) -> bytes:
    value = _lookup(model.metadata.config, (*place, key))
    if not isinstance(value, str) or not value.startswith(_PREFIX):
        raise CheckpointError(
            f"{model.path}: its tokenizer is not packed in the file ({'.'.join((*place, key))}={value!r})"
        )
    return model.artefact(value.removeprefix(_PREFIX))


def _grow_pieces(
    model: Checkpoint, place: Place, texts: Sequence[str], donors: Sequence[Checkpoint], changes: Changes
) -> None:
    """Lets one SentencePiece model have these pieces, and the lists beside it."""
    old = _pieces(model, place)
    known = {piece.text: piece for piece in old.pieces}
    shown = f"{model.path} ({'.'.join(place)})"
    found: dict[str, Piece] = {}
    for donor in donors:
        if _lookup(donor.metadata.config, place) is None:
            continue  # it lacks this language
        for piece in _pieces(donor, place).pieces:
            mine = known.get(piece.text) or found.setdefault(piece.text, piece)
            if mine is piece and piece.kind in ("UNKNOWN", "BYTE"):
                raise CheckpointError(
                    f"{donor.path} ({'.'.join(place)}): piece {piece.text!r} is {piece.kind} and not in {shown}; the "
                    "tokenizers cannot become one"
                )
            if mine.kind != piece.kind:
                raise CheckpointError(
                    f"{donor.path} ({'.'.join(place)}): piece {piece.text!r} is {piece.kind}, but {mine.kind} in "
                    f"{shown}; the tokenizers cannot become one"
                )
    new = [found[text] for text in texts[len(old.pieces) :]]
    if not new:
        return
    _replace(model, place, _MODEL, grow(old, new, shown).data, changes)
    for key, more in ((_VOCAB, vocab_text(new)), (_TABLE, vocab_table(new))):
        value = _lookup(model.metadata.config, (*place, key))
        if isinstance(value, str) and value.startswith(_PREFIX):
            before = _content(model, place, key)
            gap = b"" if not before or before.endswith(b"\n") else b"\n"
            _replace(model, place, key, before + gap + more.encode(), changes)


def _copy_language(donor: Checkpoint, place: Place, changes: Changes) -> None:
    """Takes over the tokenizer of a language with its files."""
    entry = _lookup(donor.metadata.config, place)
    changes.config[place] = dict(entry)
    for key, value in entry.items():
        if isinstance(value, str) and value.startswith(_PREFIX):
            _replace(donor, place, key, donor.artefact(value.removeprefix(_PREFIX)), changes)


def _replace(model: Checkpoint, place: Place, key: str, content: bytes, changes: Changes) -> None:
    """Packs a file under a name that tells its content, as NeMo's names do not."""
    old = str(_lookup(model.metadata.config, (*place, key))).removeprefix(_PREFIX)
    ending = PurePosixPath(old).name.split("_", 1)[-1]
    name = f"{hashlib.sha256(content).hexdigest()[:32]}_{ending}"
    changes.artefacts[name] = content
    changes.config[(*place, key)] = _PREFIX + name


def _grow_config(model: Checkpoint, own: Vocabulary, wanted: Vocabulary, changes: Changes) -> None:
    """The numbers and lists of tokens in the configuration, as NeMo would write them for this tokenizer."""
    config = model.metadata.config
    texts = [token.text for token in wanted.tokens]
    for place in (*_LISTS, *((section, "labels") for section in _DATA)):
        value = _lookup(config, place)
        if isinstance(value, list) and value:
            changes.config[place] = texts
    before, after = len(own), len(wanted)
    for places, old, new in ((_COUNTS, before, after), (_PADDED_COUNTS, _padded(before), _padded(after))):
        for place in places:
            value = _lookup(config, place)
            if isinstance(value, int) and value > 0:
                if value != old:
                    raise CheckpointError(
                        f"{model.path}: its configuration has {'.'.join(place)}={value}, but its tokenizer gives "
                        f"{old}; its vocabulary cannot grow"
                    )
                changes.config[place] = new


def _padded(tokens: int) -> int:
    return tokens + -tokens % 8


def _lookup(config: Mapping[str, Any], place: Place) -> Any:
    node: Any = config
    for key in place:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node
