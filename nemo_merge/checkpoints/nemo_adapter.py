"""NeMo's own adapters: ``.pt`` files of ``model.save_adapters``, and ``.nemo`` files of models that carry adapters.

Such an adapter is a small network between layers (a bottleneck with an activation), not a change of the base's weights:
its tensors come on top of those of the base, and so does its configuration.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ..low_rank import LowRank
from ..posterior import Posterior
from ._checkpoint import Checkpoint, Metadata, TensorSpec, Writer
from ._plain import plain
from ._torch_zip import StoredTensor, TorchZip
from ._yaml import dump
from .nemo import NemoCheckpoint

GLOBAL = "global_cfg"
_CONFIG = "__cfg__"
_NAME = re.compile(r"(?P<place>.*\.adapter_layer)\.(?P<name>[^.]+)\.")
_ENCODERS = {
    "ConformerEncoder": "nemo.collections.asr.modules.conformer_encoder.ConformerEncoderAdapter",
    "ConformerEncoderAdapter": "nemo.collections.asr.modules.conformer_encoder.ConformerEncoderAdapter",
}
"""Classes of encoders and those that take adapters; the latter restore the same weights."""


def adapter_of(tensor: str) -> str | None:
    """Name of the adapter that a tensor of a model belongs to, if it belongs to one."""
    match = _NAME.match(tensor)
    return match["name"] if match else None


def adapter_configs(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configurations of the adapters of a model (its key ``adapters``), by name."""
    adapters = config.get("adapters")
    if not isinstance(adapters, Mapping):
        return {}
    return {name: value for name, value in adapters.items() if name != GLOBAL and isinstance(value, Mapping)}


def is_nemo_adapter(content: Any) -> bool:
    """Whether what ``torch.save`` wrote is a file of ``save_adapters``."""
    return isinstance(content, Mapping) and _CONFIG in content


class NemoAdapterCheckpoint(Checkpoint):
    """A file of ``model.save_adapters``: encoder adapters with their configuration; nothing in it is executed.

    Tensors have the names that they have in a model of a Conformer encoder with these adapters.

    Args:
        path: the file.
        archive: the file, if it is open already (with placeholders).

    Raises:
        CheckpointError: damaged, no such file, or adapters of another part than the encoder.
    """

    format = "nemo adapter"

    def __init__(self, path: str | Path, *, archive: TorchZip | None = None) -> None:
        self.path = Path(path)
        self._zip = archive or TorchZip(self.path, placeholders=True)
        content = self._zip.content
        if not is_nemo_adapter(content) or not isinstance(config := plain(content.get(_CONFIG)), Mapping):
            raise CheckpointError(f"{self.path}: no file of NeMo's save_adapters(): it has no {_CONFIG}")
        self.adapters = adapter_configs({"adapters": config})
        self._stored: dict[str, StoredTensor] = {}
        self.layers = 0
        for key, layers in content.items():
            if key != _CONFIG:
                self._add(str(key), layers)
        self._zip.check_all(self._stored)
        self.specs = {name: stored.spec for name, stored in self._stored.items()}
        self.ties = {}
        self.metadata = Metadata("nemo adapter", f"adapter {', '.join(self.adapters)}", {"adapters": dict(config)})

    def _add(self, key: str, layers: Any) -> None:
        module, _, name = key.rpartition(":")
        if module not in ("", "encoder"):
            raise CheckpointError(
                f"{self.path}: adapter {key!r} belongs to {module!r}; only adapters of the encoder can be merged"
            )
        if not isinstance(layers, list) or name not in self.adapters:
            raise CheckpointError(f"{self.path}: adapter {key!r} is damaged or has no configuration")
        self.layers = max(self.layers, len(layers))
        for index, state in enumerate(layers):
            if not isinstance(state, Mapping):
                raise CheckpointError(f"{self.path}: adapter {key!r} is damaged: entry {index} is no state dict")
            for own, stored in state.items():
                if not str(own).startswith(f"{name}."):
                    continue  # NeMo also puts adapters here whose name contains this one's
                if not isinstance(stored, StoredTensor):
                    raise CheckpointError(f"{self.path}: {own!r} of adapter {key!r} is no tensor")
                self._stored[f"encoder.layers.{index}.adapter_layer.{own}"] = stored

    def __getitem__(self, name: str) -> Tensor:
        return self._zip.read(self._stored[name])

    @property
    def details(self) -> Mapping[str, Any]:
        return {"adapter": {name: config.get("_target_") for name, config in self.adapters.items()}}


class OverlaidCheckpoint(Checkpoint):
    """A checkpoint with some tensors replaced or added: an expert with adapter modules.

    Args:
        inner: what the other tensors come from.
        tensors: the tensors on top.
        source: what names, digests and the record come from: a file of adapters, or ``inner`` itself.
    """

    def __init__(self, inner: Checkpoint, tensors: Mapping[str, Tensor], source: Checkpoint | None = None) -> None:
        self.inner, self.tensors, self.source = inner, tensors, source or inner
        self.path, self.format = self.source.path, self.source.format  # type: ignore[misc]
        self.ties = inner.ties
        added = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        self.specs = {**inner.specs, **added}
        self.metadata = dataclasses.replace(inner.metadata, provenance=self.source.metadata.provenance)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name] if name in self.tensors else self.inner[name]

    def low_rank(self, name: str) -> LowRank | None:
        if name in self.tensors or self.source is self.inner:
            return None
        shape = self.specs[name].shape or (1,)  # of the base: no change
        return LowRank.zero(shape[0], self.specs[name].numel // max(shape[0], 1))

    def posterior(self, name: str) -> Posterior | None:
        unchanged = self.low_rank(name)
        return None if unchanged is None else Posterior.none(*unchanged.shape)

    @property
    def files(self) -> list[Path]:
        return self.source.files

    @property
    def details(self) -> Mapping[str, Any]:
        return self.source.details

    def writer(
        self, output: Path, specs: Mapping[str, TensorSpec], record: Mapping[str, Any], *, overwrite: bool = False
    ) -> Writer:
        return self.inner.writer(output, specs, record, overwrite=overwrite)


class NemoWithAdapters(NemoCheckpoint):
    """A ``.nemo`` base as if it had adapters: more tensors, and a configuration with which NeMo restores them.

    Args:
        base: the base.
        tensors: tensors of the adapters.
        adapters: configuration of each adapter, by name.
        encoder: class of an encoder that takes adapters; by default the one that goes with the base's.

    Raises:
        CheckpointError: the base's encoder takes no adapters.
    """

    def __init__(
        self, base: NemoCheckpoint, tensors: Mapping[str, Tensor], adapters: Mapping[str, Any], encoder: str | None
    ) -> None:
        self.__dict__.update(base.__dict__)  # the same open file
        self.base = base
        self._tensors = tensors
        self.added = frozenset(tensors)
        added = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        self.specs = {**base.specs, **added}
        config = _with_adapters(base, adapters, encoder)
        self.metadata = dataclasses.replace(base.metadata, config=config)
        self.config_text = dump(config)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name] if name in self._tensors else super().__getitem__(name)

    def close(self) -> None:
        self.base.close()


def _with_adapters(base: NemoCheckpoint, adapters: Mapping[str, Any], encoder: str | None) -> dict[str, Any]:
    config = copy.deepcopy(dict(base.metadata.config))
    own = config.get("encoder")
    target = str(own.get("_target_", "")) if isinstance(own, dict) else ""
    known = _ENCODERS.get(target.rpartition(".")[2])
    if not isinstance(own, dict) or (encoder is None and known is None):
        raise CheckpointError(
            f"{base.path}: its encoder is {target or 'unknown'}, for which no class with adapters is known; give "
            "experts as .nemo files with the adapter inside (model.save_to)"
        )
    own["_target_"] = known or encoder
    entries = config.setdefault("adapters", {})
    modules = entries.setdefault(GLOBAL, {}).setdefault("adapter_meta_cfg", {}).setdefault("modules", {})
    for name, value in adapters.items():
        entries[name] = copy.deepcopy(dict(value))
        modules.setdefault(name, "encoder")
    return config
