"""A base with an adapter: an expert whose tensors are made when they are asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..low_rank import LowRank
from ..posterior import Posterior
from ._changes import Change
from ._checkpoint import Checkpoint, TensorSpec, Writer


class AdaptedCheckpoint(Checkpoint):
    """An expert made of its base and an adapter.

    Tensors that the adapter leaves alone are those of the base, without a copy; the others are computed when they are
    read, in float64, and rounded once to the base's type, or to float32 where that has 16 bits. Plain LoRA also gives
    its change as factors (:meth:`low_rank`), which are not rounded at all, and Bayesian LoRA its variances
    (:meth:`posterior`).

    Args:
        base: the model that the adapter was trained on.
        adapter: the adapter, or the pack.
        changes: what it does to which tensors of the base.
    """

    format = "adapter"

    def __init__(self, base: Checkpoint, adapter: Checkpoint, changes: Mapping[str, Change]) -> None:
        self.base, self.adapter, self.changes = base, adapter, changes
        self.path = adapter.path
        self.ties = base.ties
        self.specs = {name: self._spec(name, spec) for name, spec in base.specs.items()}
        self.metadata = dataclasses.replace(base.metadata, provenance=adapter.metadata.provenance)

    def __getitem__(self, name: str) -> Tensor:
        change = self.changes.get(self.ties.get(name, name))
        tensor = self.base[name]
        return tensor if change is None else change.apply(tensor).to(self.specs[name].dtype)

    def low_rank(self, name: str) -> LowRank | None:
        change = self.changes.get(self.ties.get(name, name))
        if change is None:
            shape = self.specs[name].shape or (1,)
            return LowRank.zero(shape[0], torch.Size(shape[1:]).numel())
        return change.factors() if change.factors is not None else None

    def posterior(self, name: str) -> Posterior | None:
        change = self.changes.get(self.ties.get(name, name))
        if change is None:
            unchanged = self.low_rank(name)
            assert unchanged is not None
            return Posterior.none(*unchanged.shape)
        return change.posterior() if change.posterior is not None else None

    @property
    def files(self) -> list[Path]:
        return self.adapter.files

    @property
    def details(self) -> Mapping[str, Any]:
        return self.adapter.details

    def writer(
        self, output: Path, specs: Mapping[str, TensorSpec], record: Mapping[str, Any], *, overwrite: bool = False
    ) -> Writer:
        return self.base.writer(output, specs, record, overwrite=overwrite)

    def close(self) -> None:
        self.adapter.close()

    def _spec(self, name: str, spec: TensorSpec) -> TensorSpec:
        if self.ties.get(name, name) not in self.changes or spec.dtype.itemsize >= 4:
            return spec
        return TensorSpec(spec.shape, torch.float32)
