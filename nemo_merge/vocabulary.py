"""Tokens of models and how their rows correspond: plain lists, no files and no weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

PADDING_BIAS = -10000.0
"""Bias of an output that stands for no token and that no model has: never chosen, and finite in every type."""

_SHOWN = 5  # tokens named in a message; the rest is counted
_GONE = "\0gone"  # in place of a language: rows whose token is to be left out
_EXTRA = "\0extra"  # in place of a language: rows that stand for no token


class Token(NamedTuple):
    """What a row of the output layer stands for.

    Attributes:
        language: key of the tokenizer in an aggregate one, else empty.
        text: piece or character.
    """

    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.language}:{self.text!r}" if self.language else repr(self.text)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model.

    Attributes:
        kind: ``characters``, ``sentencepiece``, ``wordpiece``, ``aggregate`` or ``huggingface``; only tokens of one
            kind can be compared.
        tokens: the token of every row, from row 0; what follows them (blank, durations, padding) is no token.
        rules: by language, how text becomes tokens: normalisation, segmentation. Rules do not decide which row is
            which, but models that differ in them cannot share a grown tokenizer.

    Raises:
        ValueError: a token appears twice.
    """

    kind: str
    tokens: tuple[Token, ...]
    rules: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.tokens):
            twice = next(token for row, token in enumerate(self.tokens) if self.rows[token] != row)
            raise ValueError(f"token {twice} appears twice")

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def rows(self) -> dict[Token, int]:
        """The row of every token."""
        return {token: row for row, token in enumerate(self.tokens)}

    @cached_property
    def languages(self) -> dict[str, list[str]]:
        """The tokens' texts by language, in order."""
        found: dict[str, list[str]] = {}
        for token in self.tokens:
            if token.language == _GONE:
                continue
            found.setdefault(token.language, []).append(token.text)
        return found

    def lacks(self, other: Vocabulary) -> list[Token]:
        """Tokens of the other that are not in this one, in the other's order."""
        return [token for token in other.tokens if token not in self.rows and token.language != _GONE]

    def without(self, tokens: Collection[Token]) -> Vocabulary:
        """The same rows, but those of some tokens stand for nothing: no union has them, no row is aligned with them."""
        kept = tuple(Token(_GONE, str(row)) if token in tokens else token for row, token in enumerate(self.tokens))
        return replace(self, tokens=kept)


def union(first: Vocabulary, others: Sequence[Vocabulary]) -> Vocabulary:
    """The tokens of all: the first's in its order, then new ones in the order of the others.

    In an aggregate vocabulary new tokens of a language follow that language's, and new languages come last, because the
    tokenizer numbers one language after the other.

    Example:
        >>> ab, bc = (Vocabulary("characters", tuple(Token("", text) for text in word)) for word in ("ab", "bc"))
        >>> [token.text for token in union(ab, [bc]).tokens]
        ['a', 'b', 'c']
    """
    languages: dict[str, dict[str, None]] = {}
    rules: dict[str, Mapping[str, str]] = {}
    for vocabulary in (first, *others):
        for language, texts in vocabulary.languages.items():
            languages.setdefault(language, {}).update(dict.fromkeys(texts))
        for language, some in vocabulary.rules.items():
            rules.setdefault(language, some)
    return Vocabulary(
        first.kind, tuple(Token(language, text) for language, texts in languages.items() for text in texts), rules
    )


def conflicts(mine: Vocabulary, theirs: Vocabulary) -> list[str]:
    """What differs in the way from text to tokens, one phrase per language and rule."""
    found = []
    for language in mine.rules.keys() & theirs.rules.keys():
        a, b = mine.rules[language], theirs.rules[language]
        of = f" of {language}" if language else ""
        found += [
            f"{rule}{of} is {b.get(rule)} instead of {a.get(rule)}"
            for rule in sorted(a.keys() | b.keys())
            if a.get(rule) != b.get(rule)
        ]
    return sorted(found)


def named(tokens: Sequence[Token]) -> str:
    """The first few tokens, and how many more there are."""
    shown = ", ".join(map(str, tokens[:_SHOWN]))
    return shown + (f" and {len(tokens) - _SHOWN} more" if len(tokens) > _SHOWN else "")


def with_extra(tokens: Sequence[Token], count: int) -> tuple[Token, ...]:
    """What every row of a table stands for: the tokens, then so many rows of another meaning, told apart by place.

    A negative count leaves out the last tokens, which have no row.
    """
    return (*tokens[: len(tokens) + min(count, 0)], *(Token(_EXTRA, str(place)) for place in range(count)))


def rows_of(target: Iterable[Token], source: Sequence[Token]) -> list[int]:
    """For every row of the target the row of the source that stands for the same, or -1.

    Example:
        >>> a, b, c = (Token("", text) for text in "abc")
        >>> rows_of([a, b, c], [c, a])
        [1, -1, 0]
    """
    rows = {token: row for row, token in enumerate(source)}
    return [rows.get(token, -1) for token in target]


class TableKind(NamedTuple):
    """A kind of tensor with one row per token.

    Attributes:
        pattern: of its names.
        extra: which numbers of rows may follow the tokens; None for any.
        padded: rows are filled up to a multiple of this.
    """

    pattern: re.Pattern[str]
    extra: tuple[int, ...] | None = None
    padded: int = 1

    def extra_rows(self, tokens: int, like: int) -> int:
        """Rows after the tokens in a table of so many tokens; ``like`` is their number in the template."""
        return -tokens % self.padded if self.padded > 1 else like


_CTC = re.compile(r"(^|\.)decoder_layers\.0\.(weight|bias)$")
_JOINT = re.compile(r"(^|\.)joint_net\.(\d+)\.(weight|bias)$")
_PREDICTION = re.compile(r"(^|\.)prediction\.embeds?(\.\d+)?\.weight$")
_ATTENTION = re.compile(r"(^|\.)(token_embedding\.weight|log_softmax\.mlp\.layer(\d+)\.(weight|bias))$")
_HUGGING_FACE = re.compile(r"(^|\.)(embed_tokens\.weight|shared\.weight|(lm_head|proj_out)\.(weight|bias))$")


def table_kinds(config: Mapping[str, Any]) -> list[TableKind]:
    """The tensors with one row per token in models of NeMo and Hugging Face.

    After the tokens come: the blank (CTC); the blank and, for TDT and multi-blank losses, durations (joint network of
    an RNN-T; none at all in a HAT, whose blank has a layer of its own); the blank as padding (prediction network); rows
    up to a multiple of 8 (NeMo's attention decoder, ``EncDecMultiTaskModel``).
    """
    joint = config.get("joint")
    joint = joint if isinstance(joint, Mapping) else {}
    after = 1 + int(joint.get("num_extra_outputs") or 0)
    if str(joint.get("_target_", "")).endswith("HATJoint"):
        after = 0
    return [
        TableKind(_CTC, (1,)),
        TableKind(_JOINT, (after,)),
        TableKind(_PREDICTION, (0, 1)),
        TableKind(_ATTENTION, padded=8),
        TableKind(_HUGGING_FACE),
    ]


def tables_of(
    shapes: Mapping[str, tuple[int, ...]], tokens: int, config: Mapping[str, Any]
) -> dict[str, tuple[TableKind, int]]:
    """The tensors with one row per token, with the number of rows that follow the tokens.

    Args:
        shapes: shape of every tensor by name.
        tokens: number of tokens.
        config: configuration of the model.

    Raises:
        ValueError: there is none, or one has a number of rows that does not fit.
    """
    kinds = table_kinds(config)
    found: dict[str, tuple[TableKind, int]] = {}
    for name in _last_layers(shapes):
        kind = next((kind for kind in kinds if kind.pattern.search(name)), None)
        if kind is None:
            continue
        rows = shapes[name][0]
        extra = rows - tokens
        wanted = (-tokens % kind.padded,) if kind.padded > 1 else kind.extra
        cut = wanted is None and config.get("vocab_size") == rows  # wav2vec 2.0 numbers tokens beyond its rows
        if (extra < 0 and not cut) or (wanted is not None and extra not in wanted):
            expected = " or ".join(str(tokens + more) for more in wanted or (0,))
            raise ValueError(
                f"tensor {name!r} has {rows} rows, but {expected}{' or more' if wanted is None else ''} belong to a "
                f"tokenizer of {tokens} tokens"
            )
        found[name] = (kind, extra)
    if not found:
        raise ValueError("no tensor with one row per token was found")
    return found


def _last_layers(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names without inner layers of a joint network or classifier: only the last layer has rows for tokens."""
    last: dict[str, int] = {}
    numbers = {}
    for name in shapes:
        match = _JOINT.search(name) or _ATTENTION.search(name)
        if match and (number := next((part for part in match.groups() if part and part.isdigit()), None)):
            stack = name[: name.rindex(number)]
            numbers[name] = (stack, int(number))
            last[stack] = max(last.get(stack, 0), int(number))
    return [name for name in shapes if name not in numbers or numbers[name][1] == last[numbers[name][0]]]
