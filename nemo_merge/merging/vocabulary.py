"""Aligns the inputs of a merge by token when their tokenizers differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..checkpoints import Checkpoint
from ..checkpoints.aligned import AlignedCheckpoint, AlignedTable
from ..errors import CheckpointError
from ..vocabulary import (
    PADDING_BIAS,
    TableKind,
    Token,
    Vocabulary,
    conflicts,
    named,
    rows_of,
    tables_of,
    union,
    with_extra,
)
from .ranges import ranges

VocabularyPolicy = Literal["strict", "base", "union"]


@dataclass(frozen=True)
class Alignment:
    """How the tokens of the inputs were brought together.

    Attributes:
        policy: ``strict``, ``base`` or ``union``.
        tokens: number of tokens of the output.
        added: tokens that the base lacks, in the order of their rows.
        dropped: tokens of experts that the output lacks.
        tables: the tensors with one row per token.
    """

    policy: VocabularyPolicy
    tokens: int
    added: tuple[Token, ...] = ()
    dropped: tuple[Token, ...] = ()
    tables: Mapping[str, AlignedTable] = field(default_factory=dict)

    def settle(self, name: str, start: int, merged: Tensor, weights: Sequence[float]) -> Tensor:
        """The merged rows of a tensor with its new rows put in: no method's arithmetic applies to them.

        Args:
            name: name of the tensor.
            start: flat index of the first merged element.
            merged: whole rows.
            weights: the experts' weights.
        """
        table = self.tables.get(name)
        if table is None or not len(table.new):
            return merged
        first = start // max(merged[0].numel(), 1)
        here = (table.new >= first) & (table.new < first + merged.shape[0])
        settled = merged.clone()
        settled[table.new[here] - first] = table.means(weights)[here].to(settled)
        return settled

    def record(self) -> dict[str, Any]:
        """For the record of the merge."""
        rows = self._new_rows()
        return {
            "policy": self.policy,
            "tokens": self.tokens,
            "added": len(self.added),
            "dropped": len(self.dropped),
            "tensors": sorted(self.tables),
            **({"new_rows": rows} if any(rows) else {}),
        }

    def _new_rows(self) -> list[str]:
        """The rows of new tokens that each expert has, as ranges: to take one out, they must be known."""
        if not self.tables:
            return []
        table = next(iter(self.tables.values()))
        new = table.new[table.new < self.tokens]
        return [ranges(new[rows[new] >= 0].tolist()) for rows in table.expert_rows]

    def __str__(self) -> str:
        parts = [f"vocabulary={self.policy}: {self.tokens} tokens, rows aligned in {len(self.tables)} tensors"]
        if self.added:
            parts.append(f"{len(self.added)} new ({named(self.added)})")
        if self.dropped:
            parts.append(f"{len(self.dropped)} dropped ({named(self.dropped)})")
        return "; ".join(parts)


@dataclass
class Aligned:
    """The inputs after alignment; ``alignment`` is None when all have the same rows already."""

    base: Checkpoint | None
    experts: Sequence[Checkpoint]
    alignment: Alignment | None = None
    unaligned: frozenset[str] = frozenset()
    """Tensors whose shapes need not be compared, because a problem with their tokens was found."""


def align(
    base: Checkpoint | None,
    experts: Sequence[Checkpoint],
    policy: VocabularyPolicy,
    problems: list[str],
    warnings: list[str],
) -> Aligned:
    """Compares the tokens of all inputs and aligns their rows; what it finds goes to ``problems`` and ``warnings``.

    Tokenizer files are read only when their digests differ.

    Args:
        base: the base, or None; then the first expert's vocabulary counts as the base's.
        experts: the experts.
        policy: ``strict`` wants the same tokens in any order, ``base`` keeps the base's, ``union`` adds the experts'.
        problems: takes what stands against the merge.
        warnings: takes what the user should know.
    """
    template, *others = experts if base is None else [base, *experts]
    untouched = Aligned(base, experts)
    digests = template.metadata.tokenizers
    if all(other.metadata.tokenizers == digests for other in others):
        return untouched
    found = len(problems)
    vocabularies = _read(template, others, policy, problems, warnings)
    mine = vocabularies.get(id(template))
    if mine is None:
        return untouched
    # An expert whose tokens cannot be told, but that was let pass, is taken to have the template's.
    theirs = [vocabularies.get(id(other), mine) for other in others]
    wanted = mine
    for other, vocabulary in zip(others, theirs, strict=True):
        _compare(template, wanted, other, vocabulary, policy, problems, warnings)
        if policy == "union":
            wanted = union(wanted, [vocabulary])
    if len(problems) > found:
        return Aligned(base, experts, None, _table_names(template, mine))
    if all(vocabulary.tokens == wanted.tokens for vocabulary in [mine, *theirs]):
        return untouched
    dropped = dict.fromkeys(token for vocabulary in theirs for token in wanted.lacks(vocabulary))
    if dropped:
        count = f"{len(dropped)} tokens of experts are" if len(dropped) > 1 else "1 token of experts is"
        warnings.append(
            f"{count} not in {template.path} and dropped: {named(list(dropped))}; vocabulary=union would keep them"
        )
    try:
        tables = [
            _tables(checkpoint, vocabulary)
            for checkpoint, vocabulary in zip([template, *others], [mine, *theirs], strict=True)
        ]
        _compare_tables(template, tables[0], others, tables[1:])
        grown = template if wanted.tokens == mine.tokens else template.with_vocabulary(wanted, others)
    except CheckpointError as error:
        problems.append(str(error))
        return Aligned(base, experts, None, _table_names(template, mine))
    models = dict(zip(map(id, [template, *others]), zip([mine, *theirs], tables, strict=True), strict=True))
    alignment = Alignment(policy, len(wanted), tuple(mine.lacks(wanted)), tuple(dropped))
    return _wrap(base, experts, grown, models, wanted, alignment)


def _read(
    template: Checkpoint,
    others: Sequence[Checkpoint],
    policy: VocabularyPolicy,
    problems: list[str],
    warnings: list[str],
) -> dict[int, Vocabulary]:
    """The vocabulary of every checkpoint whose tokens can be compared with the template's, by identity."""
    found: dict[int, Vocabulary] = {}
    reasons: dict[int, str] = {}
    for checkpoint in (template, *others):
        try:
            vocabulary = checkpoint.vocabulary()
        except CheckpointError as error:
            reasons[id(checkpoint)] = str(error)
            continue
        if vocabulary is None:
            reasons[id(checkpoint)] = f"{checkpoint.path} has no tokenizer files"
        else:
            found[id(checkpoint)] = vocabulary
    mine = template.metadata.tokenizers
    for other in {id(other): other for other in others}.values():
        theirs = other.metadata.tokenizers
        if theirs == mine:
            continue
        reason = reasons.get(id(other)) or reasons.get(id(template))
        different = sorted(place for place in mine.keys() & theirs.keys() if mine[place] != theirs[place])
        if reason is None:
            a, b = found[id(template)].kind, found[id(other)].kind
            if a == b:
                continue
            reason = f"it has {b} instead of {a}; train the expert with the base's tokenizer"
            del found[id(other)]
            if template.format == other.format:
                different = different or ["tokenizer"]
        if different:
            problems.append(
                f"{other.path}: its tokenizer differs from that of {template.path} ({', '.join(different)}), and their "
                f"tokens cannot be compared: {reason}"
            )
        elif policy != "strict":
            problems.append(f"{other.path}: its tokens cannot be aligned with those of {template.path}: {reason}")
        else:
            warnings.append(
                f"{other.path}: its tokenizer cannot be compared with that of {template.path}: one of them lacks files"
            )
    return found


def _compare(
    template: Checkpoint,
    mine: Vocabulary,
    other: Checkpoint,
    theirs: Vocabulary,
    policy: VocabularyPolicy,
    problems: list[str],
    warnings: list[str],
) -> None:
    """Compares an expert's tokens with the template's; for a union ``mine`` holds those of earlier experts too."""
    missing, additional = theirs.lacks(mine), mine.lacks(theirs)
    if policy == "strict" and (missing or additional):
        parts = [
            f"{verb} {len(tokens)} {what}{'s' if len(tokens) > 1 else ''} ({named(tokens)})"
            for tokens, verb, what in ((missing, "lacks", "token"), (additional, "has", "additional token"))
            if tokens
        ]
        problems.append(
            f"{other.path}: its tokenizer differs from that of {template.path}: it {' and '.join(parts)}; pass "
            "vocabulary=base to keep the base's tokens, or vocabulary=union to add the experts'"
        )
        return
    different = conflicts(mine, theirs)
    if different and policy == "union" and additional:
        problems.append(
            f"{other.path}: its tokenizer cannot be united with that of {template.path}: {'; '.join(different)}; "
            "train it with the same rules, use aggregate tokenizers, or pass vocabulary=base"
        )
    elif different:
        warnings.append(
            f"{other.path}: its tokenizer makes tokens by other rules than that of {template.path}, which is kept: "
            f"{'; '.join(different)}"
        )


def _tables(checkpoint: Checkpoint, vocabulary: Vocabulary) -> dict[str, tuple[TableKind, int]]:
    shapes = {name: spec.shape for name, spec in checkpoint.specs.items()}
    try:
        return tables_of(shapes, len(vocabulary), checkpoint.metadata.config)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: its rows cannot be aligned by token: {error}") from error


def _compare_tables(
    template: Checkpoint,
    mine: Mapping[str, tuple[TableKind, int]],
    others: Sequence[Checkpoint],
    tables: Sequence[Mapping[str, tuple[TableKind, int]]],
) -> None:
    """Raises if what follows the tokens is not the same: no rows of durations, say, are dropped in silence."""
    for other, theirs in zip(others, tables, strict=True):
        for name, (kind, extra) in mine.items():
            if kind.extra is not None and name in theirs and theirs[name][1] != extra:
                raise CheckpointError(
                    f"{other.path}: tensor {name!r} has {theirs[name][1]} rows after those of the tokens, but {extra} "
                    f"in {template.path}: blank, durations or padding differ"
                )


def _held(expert: Checkpoint, target: Sequence[Token]) -> Tensor | None:
    """The weight behind each row of a merged model; None for an expert, behind which stands its own.

    Not a number where it is not told, as for padding.
    """
    if expert.holders is None:
        return None
    return torch.tensor([expert.holders.get(token, torch.nan) for token in target], dtype=torch.float64)


def _table_names(checkpoint: Checkpoint, vocabulary: Vocabulary) -> frozenset[str]:
    try:
        return frozenset(_tables(checkpoint, vocabulary))
    except CheckpointError:
        return frozenset()


def _wrap(
    base: Checkpoint | None,
    experts: Sequence[Checkpoint],
    grown: Checkpoint,
    models: Mapping[int, tuple[Vocabulary, Mapping[str, tuple[TableKind, int]]]],
    wanted: Vocabulary,
    alignment: Alignment,
) -> Aligned:
    """Puts every checkpoint behind the common rows; ``grown`` is the template with its new tokenizer."""
    template = base if base is not None else experts[0]
    inputs = list(experts) if base is None else [base, *experts]
    maps: dict[int, dict[str, tuple[AlignedTable, Tensor]]] = {index: {} for index in range(len(inputs))}
    tables: dict[str, AlignedTable] = {}
    for name, (kind, extra) in models[id(template)][1].items():
        inner = template.specs[name].shape[1:]
        if any(name not in models[id(item)][1] or item.specs[name].shape[1:] != inner for item in inputs):
            continue  # missing or of another width in one of them, which is reported when names and shapes are compared
        target = with_extra(wanted.tokens, kind.extra_rows(len(wanted), extra))
        rows = [
            torch.tensor(rows_of(target, with_extra(models[id(item)][0].tokens, models[id(item)][1][name][1])))
            for item in inputs
        ]
        filler = PADDING_BIAS if name.endswith(".bias") else 0.0
        own = rows if base is None else rows[1:]
        held = [_held(expert, target) for expert in experts]
        table = AlignedTable(name, base, rows[0] if base is not None else torch.empty(0), experts, own, filler, held)
        tables[name] = table
        for index, mapped in enumerate(rows):
            maps[index][name] = (table, mapped)
    like = {name: template.specs[name].dtype for name in tables}
    wrapped: list[Checkpoint] = [
        AlignedCheckpoint(grown if item is template else item, maps[index], like) for index, item in enumerate(inputs)
    ]
    alignment = replace(alignment, tables=tables)
    return Aligned(None, wrapped, alignment) if base is None else Aligned(wrapped[0], wrapped[1:], alignment)
