"""A state dict in memory behind the interface of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..posterior import Posterior
from ._checkpoint import Checkpoint, Metadata, TensorSpec, Writer


class StateDictCheckpoint(Checkpoint):
    """A dictionary of tensors, on any device.

    Args:
        tensors: the state dict; it is not changed.
        label: how messages call it.
        variances: posterior variances of the entries of some of its tensors, by name.
    """

    format = "state dict"

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        label: str = "<state dict>",
        variances: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        self.path = Path(label)
        self._variances = variances
        self._tensors = {name: value.detach() for name, value in tensors.items() if isinstance(value, Tensor)}
        self.specs = {name: TensorSpec(tuple(value.shape), value.dtype) for name, value in self._tensors.items()}
        owners: dict[Any, str] = {}
        self.ties = {}
        for name, value in self._tensors.items():
            if value.numel() == 0:
                continue
            key = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
            if (owner := owners.setdefault(key, name)) != name:
                self.ties[name] = owner
        self.metadata = Metadata("state dict")

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def posterior(self, name: str) -> Posterior | None:
        name = self.ties.get(name, name) if name not in self._variances else name
        return Posterior(self._variances[name].detach()) if name in self._variances else None

    @property
    def files(self) -> list[Path]:
        return []

    def writer(
        self, output: Path, specs: Mapping[str, TensorSpec], record: Mapping[str, Any], *, overwrite: bool = False
    ) -> StateDictWriter:
        return StateDictWriter(self, specs)


class StateDictWriter(Writer):
    """Collects tensors; :attr:`state_dict` holds the result.

    Args:
        template: gives the names and their order; where it is in memory, its tensors' devices are the result's too.
        specs: shape and type of every tensor, tied names left out.
    """

    def __init__(self, template: Checkpoint, specs: Mapping[str, TensorSpec]) -> None:
        self._template = template
        in_memory = isinstance(template, StateDictCheckpoint)
        self.state_dict: dict[str, Tensor] = {
            name: torch.empty(spec.shape, dtype=spec.dtype, device=template[name].device if in_memory else "cpu")
            for name, spec in specs.items()
        }

    def write(self, name: str, start: int, values: Tensor) -> None:
        self.state_dict[name].view(-1)[start : start + values.numel()] = values.reshape(-1)

    def commit(self, documents: Mapping[str, str] = MappingProxyType({})) -> None:
        ties = self._template.ties
        written = self.state_dict
        self.state_dict = {name: written[ties.get(name, name)] for name in self._template.specs}
