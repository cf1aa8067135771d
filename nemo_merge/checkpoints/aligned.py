"""Checkpoints whose rows of the output layer and embeddings are put in the order of common tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ..low_rank import LowRank
from ..posterior import Posterior
from ._checkpoint import Checkpoint, TensorSpec, Writer


@dataclass
class AlignedTable:
    """One tensor with a row per token, over all inputs of a merge.

    Attributes:
        name: name of the tensor.
        base: the base, or None.
        base_rows: for every common row the base's row, or -1; empty without a base.
        experts: the experts.
        expert_rows: the same for every expert.
        held: for every expert that is a merged model itself, the weight that stands behind each of the common rows.
        filler: value of rows that no input has.
    """

    name: str
    base: Checkpoint | None
    base_rows: Int[Tensor, " rows"]
    experts: Sequence[Checkpoint]
    expert_rows: Sequence[Int[Tensor, " rows"]]
    filler: float = 0.0
    held: Sequence[Float[Tensor, " rows"] | None] = ()
    _means: dict[tuple[float, ...], Tensor] = field(default_factory=dict)

    @property
    def new(self) -> Int[Tensor, " new"]:
        """Rows that the base lacks; without a base, rows that not all experts have."""
        if self.base is not None:
            return (self.base_rows < 0).nonzero().flatten()
        return (torch.stack(list(self.expert_rows)) < 0).any(0).nonzero().flatten()

    def means(self, weights: Sequence[float]) -> Float[Tensor, "new ..."]:
        """The new rows: the mean over the experts that have them with the experts' shares, in float64.

        Where weights are negative, or nothing for all that have a row, these experts count alike.
        """
        key = tuple(weights)
        if key not in self._means:
            self._means[key] = self._compute_means(key)
        return self._means[key]

    def _compute_means(self, weights: tuple[float, ...]) -> Tensor:
        new = self.new
        shares = torch.tensor(weights, dtype=torch.float64)
        has = torch.stack([rows[new] >= 0 for rows in self.expert_rows]).to(torch.float64)
        held = [None if known is None else known[new] for known in self.held or [None] * len(shares)]
        if any(weight < 0 and known is None for weight, known in zip(weights, held, strict=True)):
            shares = torch.ones_like(shares)
        behind = [
            share.expand(len(new)) if known is None else torch.where(known.isnan(), share, known)
            for share, known in zip(shares, held, strict=True)
        ]
        portions = has * torch.stack(behind)
        portions = torch.where(portions.sum(0) > 0, portions, has)
        portions = portions / portions.sum(0).clamp(min=torch.finfo(torch.float64).tiny)
        inner = self.experts[0].specs[self.name].shape[1:]
        means = torch.zeros((len(new), *inner), dtype=torch.float64)
        for expert, rows, portion in zip(self.experts, self.expert_rows, portions, strict=True):
            known = (rows[new] >= 0).nonzero().flatten()
            if len(known):
                values = expert[self.name][rows[new[known]]].to(torch.float64)
                means[known] += values * portion[known].view(-1, *[1] * len(inner))
        means[has.sum(0) == 0] = self.filler
        return means

    def aligned(
        self, own: Checkpoint, rows: Int[Tensor, " rows"], dtype: torch.dtype, like: torch.dtype
    ) -> Shaped[Tensor, "rows ..."]:
        """A checkpoint's tensor with common rows: its own, those of the base that it lacks, and new ones.

        New rows are the same in all checkpoints, to the bit, so that they are in nobody's task vector.

        Args:
            own: the checkpoint.
            rows: its row for every common one, or -1.
            dtype: type of the result.
            like: type of the template's tensor, to which new rows are rounded.
        """
        tensor = own[self.name]
        if torch.equal(rows, torch.arange(tensor.shape[0])) and not len(self.new):
            return tensor.to(dtype)
        result = torch.empty((len(rows), *tensor.shape[1:]), dtype=dtype, device=tensor.device)
        has = rows >= 0
        result[has] = tensor[rows[has]].to(dtype)
        if self.base is not None:
            lacks = ~has & (self.base_rows >= 0)
            result[lacks] = self.base[self.name][self.base_rows[lacks]].to(result)
        new = self.new
        result[new] = self.means([1.0] * len(self.experts)).to(like).to(result)
        return result


class AlignedCheckpoint(Checkpoint):
    """Another checkpoint with aligned tables; everything else is the other's.

    Args:
        own: the checkpoint; what it says of the model and its writer count.
        tables: the tables by name, with the inner checkpoint's row for every common one, or -1.
        like: type of every table in the template.
    """

    def __init__(
        self,
        own: Checkpoint,
        tables: Mapping[str, tuple[AlignedTable, Int[Tensor, " rows"]]],
        like: Mapping[str, torch.dtype],
    ) -> None:
        self.own = own
        self._tables = dict(tables)
        self._like = dict(like)
        self.path: Path = own.path
        self.format = own.format  # type: ignore[misc]  # the class of the inner one says it
        self.metadata = own.metadata
        self.ties = own.ties
        self.specs = {name: self._spec(name, spec) for name, spec in own.specs.items()}

    def _spec(self, name: str, spec: TensorSpec) -> TensorSpec:
        if name not in self._tables:
            return spec
        rows = len(self._tables[name][1])
        dtype = torch.promote_types(spec.dtype, self._like[name])
        return replace(spec, shape=(rows, *spec.shape[1:]), dtype=dtype)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._tables:
            return self.own[name]
        table, rows = self._tables[name]
        return table.aligned(self.own, rows, self.specs[name].dtype, self._like[name])

    @property
    def details(self) -> Mapping[str, Any]:
        return self.own.details

    def low_rank(self, name: str) -> LowRank | None:
        return None if name in self._tables else self.own.low_rank(name)

    def posterior(self, name: str) -> Posterior | None:
        return None if name in self._tables else self.own.posterior(name)

    @property
    def files(self) -> list[Path]:
        return self.own.files

    def writer(
        self, output: Path, specs: Mapping[str, TensorSpec], record: Mapping[str, Any], *, overwrite: bool = False
    ) -> Writer:
        return self.own.writer(output, specs, record, overwrite=overwrite)

    def close(self) -> None:
        self.own.close()
