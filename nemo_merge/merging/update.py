"""Changes a merged model by one expert, without those that are in it already."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .. import methods
from ..checkpoints import Checkpoint, open_checkpoint
from ..low_rank import LowRank
from ..methods import Block, Method
from ..methods._parameters import parameter
from ..posterior import Posterior
from ..vocabulary import Token, Vocabulary, union
from .api import Options, merge_variants
from .composition import Composition
from .inputs import Source, open_inputs
from .provenance import record_of


@dataclass(frozen=True)
class Update(Method):
    """Adds an expert to a merged model or takes one out: ``base + kept (merged - base) + gain w (expert - base)``.

    The two inputs are the merged model and the expert; their ``weights`` are the sum of the weights in the merged model
    and the expert's, negative where it is taken out, and count as shares in what is averaged. It is no method to be
    chosen: :func:`~nemo_merge.merging.extend` and :func:`~nemo_merge.merging.forget` set it up.
    """

    name: ClassVar[str] = "update"
    family: ClassVar[str] = "task vectors"
    source: ClassVar[str] = "nemo_merge.merging.extend"
    minimum_experts: ClassVar[int] = 2
    maximum_experts: ClassVar[int | None] = 2

    kept: float = parameter(1.0, "Factor on the merged model's change of the base.")
    gain: float = parameter(1.0, "Factor on the expert's change of the base, beside its weight.")

    def requires_base(self, experts: int) -> bool:
        factors = self._factors(self.resolved_weights(experts))
        return abs(float(factors.sum()) - 1) > 1e-9

    def shares(self, weights: Float[Tensor, " experts"]) -> Float[Tensor, " experts"]:
        return weights / weights.sum()

    def combine_block(
        self, block: Block, weights: Float[Tensor, " experts"], statistics: Any
    ) -> Float[Tensor, "*shape"]:
        return block.weighted_sum(self._factors(weights))

    def _factors(self, weights: Float[Tensor, " experts"]) -> Float[Tensor, " experts"]:
        return torch.stack([weights.new_tensor(self.kept), self.gain * weights[1]])


def method_of(settings: Mapping[str, Any]) -> Method:
    """The method of a record, with its parameters."""
    said = dict(settings)
    name = said.pop("name")
    return Update(**said) if name == Update.name else methods.get(name, **said)


def update_inputs(
    base: Source | None,
    inputs: Sequence[Source],
    step: Mapping[str, Any],
    options: Options,
    folder: Path,
    stack: ExitStack,
) -> tuple[Checkpoint | None, list[Checkpoint]]:
    """The inputs of an update, opened.

    The merged model says which of its experts have which tokens that the base lacks, so that their rows stay the mean
    over those that have them; an expert that is taken out takes tokens along that nobody else has. Where the method of
    the merge treats every expert by itself first, ``step["through"]``, so it does this one.

    Args:
        base: the base, if there is one.
        inputs: the merged model and the expert.
        step: ``extension`` of the record.
        options: of the merge.
        folder: for temporary files.
        stack: closes everything.
    """
    opened, (merged, expert) = open_inputs(base, inputs, stack)
    if opened is not None and merged.metadata.tokenizers != opened.metadata.tokenizers:
        composition = Composition.of(record_of(merged), merged.path)
        vocabulary, common = merged.vocabulary(), opened.vocabulary()
        if vocabulary is not None and common is not None:
            going = _going(composition, vocabulary, common, step["forget"]) if "forget" in step else set()
            merged = Viewed(merged, vocabulary=vocabulary.without(going), holders=_holders(composition, vocabulary))
            own = expert.vocabulary()
            if "forget" in step and own is not None:
                weight = composition.member(step["forget"]).weight
                expert = Viewed(expert, vocabulary=own.without(going), holders=dict.fromkeys(own.tokens, -weight))
    if step.get("through"):
        expert = _alone(opened, expert, step["through"], options, folder, stack)
    return opened, [merged, expert]


class Viewed(Checkpoint):
    """A checkpoint with other tensors, tokens or holders; files, digests and everything else are its own.

    Args:
        own: the checkpoint.
        tensors: where its tensors come from.
        vocabulary: what its rows stand for.
        holders: as in :class:`Checkpoint`.
    """

    def __init__(
        self,
        own: Checkpoint,
        tensors: Checkpoint | None = None,
        vocabulary: Vocabulary | None = None,
        holders: Mapping[Token, float] | None = None,
    ) -> None:
        self.own, self._tensors, self._vocabulary = own, tensors or own, vocabulary
        self.holders = holders if holders is not None else own.holders
        self.path, self.format, self.metadata = own.path, own.format, own.metadata  # type: ignore[misc]
        self.specs, self.ties = self._tensors.specs, self._tensors.ties

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def low_rank(self, name: str) -> LowRank | None:
        return self._tensors.low_rank(name)

    def posterior(self, name: str) -> Posterior | None:
        return self._tensors.posterior(name)

    @property
    def files(self) -> list[Path]:
        return self.own.files

    @property
    def details(self) -> Mapping[str, Any]:
        return self.own.details

    def vocabulary(self) -> Vocabulary | None:
        return self._vocabulary or self.own.vocabulary()

    def artefact(self, name: str) -> bytes:
        return self.own.artefact(name)


def tokens_after(base: Checkpoint, inputs: Sequence[Checkpoint], policy: str) -> dict[Token, int]:
    """The rows of the tokens that an update's output has, if they are not the base's."""
    if all(item.metadata.tokenizers == base.metadata.tokenizers for item in inputs) or policy != "union":
        return {}
    common = base.vocabulary()
    others = [vocabulary for item in inputs if (vocabulary := item.vocabulary()) is not None]
    return {} if common is None else union(common, others).rows


def _holders(composition: Composition, vocabulary: Vocabulary) -> dict[Token, float]:
    """The weight of the experts that have each new token of a merged model."""
    holders: dict[Token, float] = {}
    for member in composition.members:
        for token in member.new_tokens(vocabulary):
            holders[token] = holders.get(token, 0.0) + member.weight
    return holders


def _going(composition: Composition, vocabulary: Vocabulary, base: Vocabulary, forget: str) -> set[Token]:
    """The new tokens that only one expert has.

    Of a language that others brought too none goes: its tokenizer is taken over as a whole.
    """
    staying = {
        token for member in composition.members if member.name != forget for token in member.new_tokens(vocabulary)
    }
    shared = {token.language for token in staying} - base.languages.keys()
    own = composition.member(forget).new_tokens(vocabulary)
    return {token for token in own if token not in staying and token.language not in shared}


def _alone(
    base: Checkpoint | None,
    expert: Checkpoint,
    through: Mapping[str, Any],
    options: Options,
    folder: Path,
    stack: ExitStack,
) -> Checkpoint:
    """What a method makes of one expert: base plus the part of the expert's change that it would merge."""
    assert base is not None  # methods that treat experts first need one
    method = method_of({**through, "scale": 1.0, "weights": [1.0]})
    home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".alone-", suffix=".partial", dir=folder)))
    sixteen = any(spec.dtype.is_floating_point and spec.dtype.itemsize < 4 for spec in base.specs.values())
    own = replace(
        options, rules=(), then=(), batch_norm="average", audio=None, dtype="float32" if sixteen else None,
        overwrite=False, as_recorded=lambda found: found,
    )  # fmt: skip
    merge_variants(base, [expert], {home / "alone.safetensors": method}, own)
    tensors = stack.enter_context(open_checkpoint(home / "alone.safetensors"))
    vocabulary = None
    if expert.metadata.tokenizers != base.metadata.tokenizers:
        mine, theirs = base.vocabulary(), expert.vocabulary()
        if mine is not None and theirs is not None:
            vocabulary = mine if options.vocabulary != "union" else union(mine, [theirs])
    return Viewed(expert, tensors, vocabulary)
