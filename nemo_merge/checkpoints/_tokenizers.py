"""Tokenizer files as NeMo packs them: SentencePiece models and the lists of pieces beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import CheckpointError

_WORD = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's sign for a space
_NO_WORDS = ("<s>", "</s>", "<pad>", "<unk>")  # NeMo leaves them out of vocab.txt


class Piece(NamedTuple):
    """An entry of a SentencePiece model; ``kind`` is ``NORMAL``, ``UNKNOWN``, ``CONTROL``, ``USER_DEFINED``, ..."""

    text: str
    score: float
    kind: str


@dataclass(frozen=True)
class SentencePieces:
    """A SentencePiece model.

    Attributes:
        data: the file.
        pieces: its entries; the row of a piece is its place.
        rules: what else decides how text becomes pieces, in words.
    """

    data: bytes
    pieces: tuple[Piece, ...]
    rules: dict[str, str]


def parse(data: bytes, shown: str) -> SentencePieces:
    """Reads a SentencePiece model.

    Args:
        data: the file.
        shown: what messages call it.

    Raises:
        CheckpointError: not a SentencePiece model, or the package sentencepiece is missing.
    """
    module = _protobuf(shown)
    model = _parse(module, data, shown)
    kinds = module.ModelProto.SentencePiece.Type
    pieces = tuple(Piece(item.piece, item.score, kinds.Name(item.type)) for item in model.pieces)
    trainer, normaliser = model.trainer_spec, model.normalizer_spec
    table = hashlib.sha256(normaliser.precompiled_charsmap).hexdigest()[:8]
    flags = [
        name.replace("_", " ")
        for name in ("add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces")
        if getattr(normaliser, name)
    ]
    rules = {
        "segmentation": trainer.ModelType.Name(trainer.model_type).lower(),
        "normalisation": f"{normaliser.name or 'none'} (table {table}; {', '.join(flags)})",
        "byte fallback": "on" if trainer.byte_fallback else "off",
    }
    return SentencePieces(data, pieces, rules)


def grow(model: SentencePieces, new: Sequence[Piece], shown: str) -> SentencePieces:
    """The model with further pieces at its end, so that the place of every old piece stays.

    Pieces keep the scores of the model that they come from.
    """
    module = _protobuf(shown)
    message = _parse(module, model.data, shown)
    kinds = module.ModelProto.SentencePiece.Type
    for piece in new:
        message.pieces.add(piece=piece.text, score=piece.score, type=kinds.Value(piece.kind))
    message.trainer_spec.vocab_size = len(message.pieces)
    return SentencePieces(message.SerializeToString(deterministic=True), (*model.pieces, *new), model.rules)


def vocab_text(new: Sequence[Piece]) -> str:
    """Lines of NeMo's ``vocab.txt``: pieces that begin a word as they are, others after ``##``."""
    lines = []
    for piece in new:
        if piece.text in _NO_WORDS or piece.kind in ("CONTROL", "USER_DEFINED"):
            continue
        word = piece.text.removeprefix(_WORD) if piece.text.startswith(_WORD) else f"##{piece.text}"
        lines.append((word or _WORD) + "\n")
    return "".join(lines)


def vocab_table(new: Sequence[Piece]) -> str:
    """Lines of SentencePiece's ``tokenizer.vocab``: piece, tab, score."""
    return "".join(f"{piece.text}\t{piece.score:g}\n" for piece in new)


def _protobuf(shown: str) -> Any:
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise CheckpointError(
            f"{shown}: the packages sentencepiece and protobuf are needed to read it; "
            "pip install 'nemo-merge[vocabulary]'"
        ) from error
    return sentencepiece_model_pb2


def _parse(module: Any, data: bytes, shown: str) -> Any:
    from google.protobuf.message import DecodeError

    model = module.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise CheckpointError(f"{shown}: not a SentencePiece model ({error})") from error
    if not model.pieces:
        raise CheckpointError(f"{shown}: not a SentencePiece model, it has no pieces")
    return model
