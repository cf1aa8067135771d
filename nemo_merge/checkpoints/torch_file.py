"""Files of ``torch.save``: a state dict, bare or in the dictionary of a training program (ESPnet, icefall ...)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ._averages import averaged
from ._checkpoint import Metadata, TensorSpec, Writer, check_outputs
from ._nemo_config import label_digests
from ._pending import Layout
from ._pickle import TorchDict
from ._plain import plain, walk
from ._single_file import SingleFileWriter
from ._stored import AVERAGES, StateDict, StoredCheckpoint, find_state_dict
from ._torch_layout import checksum_places, lay_out, lay_out_objects
from ._torch_zip import StoredTensor, TorchZip
from ._yaml import unfolded_size

PROVENANCE_KEY = "nemo_merge"
_CONFIG_KEYS = ("config", "cfg", "args", "hparams")
_MAX_KEPT = 16 << 20
_TRAINING = re.compile(
    r"(last_)?optim(izers?)?(_states?|_state_dict)?|(lr_|opt_param_)?schedulers?(_state_dict)?|(grad_)?scaler|"
    r"(native_)?amp(_scaling_state)?|MixedPrecision(Plugin)?|callbacks|loops|sampler|reporter|rng_state|random_states|"
    r"averaging_state|current_model_state|" + "|".join(AVERAGES)
)
"""Entries that belong to the training that made a checkpoint."""


class TorchFileCheckpoint(StoredCheckpoint):
    """A file of ``torch.save`` that is a state dict or holds one; tensors are mapped, and nothing else is read.

    Objects of other classes (configurations, optimizers, numpy values) are read as placeholders: their classes are not
    imported, no function is called.

    Args:
        path: the file.
        ema: take averaged weights (see :mod:`nemo_merge.checkpoints._averages`).
        archive: the file, if it is open already.

    Raises:
        CheckpointError: damaged, no state dict inside, or no averaged weights.
    """

    format = "torch"

    def __init__(self, path: str | Path, *, ema: bool = False, archive: TorchZip | None = None) -> None:
        self.path, self._ema = Path(path), ema
        self._zip = archive or TorchZip(self.path, placeholders=True)
        self.content: Any = self._zip.content
        self._found = find_state_dict(self.content, str(self.path))
        self._take(averaged(self.content, self._found) if ema else self._found.tensors)
        record = self.content.get(PROVENANCE_KEY) if self.wrapped else None
        self.metadata = metadata_of(self.format, self._config(), record, str(self.path))

    @property
    def wrapped(self) -> bool:
        """Whether the state dict stands in a dictionary with other things."""
        return bool(self._found.where)

    @property
    def details(self) -> Mapping[str, Any]:
        return {"ema": True} if self._ema else {}

    def writer(
        self, output: Path, specs: Mapping[str, TensorSpec], record: Mapping[str, Any], *, overwrite: bool = False
    ) -> Writer:
        check_outputs(output, overwrite)
        layout = lay_out_like(self, specs, record)
        return SingleFileWriter(output, layout, record, overwrite=overwrite, checksums=checksum_places(layout))

    def _config(self) -> Any:
        """The model's configuration, where the file has one."""
        return next((self.content[key] for key in _CONFIG_KEYS if key in self.content), {}) if self.wrapped else {}


def metadata_of(format_name: str, config: Any, record: Any, shown: str) -> Metadata:
    """Metadata from a configuration and a record that a pickle holds, perhaps as placeholders.

    Raises:
        CheckpointError: it refers to itself or unfolds into millions of values.
    """
    config, record = plain(config), plain(record)
    try:
        unfolded_size((config, record))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{shown}: its configuration is damaged ({error})") from error
    config = config if isinstance(config, dict) else {}
    target = config.get("target")
    return Metadata(
        format_name,
        target if isinstance(target, str) else None,
        config,
        label_digests(config),
        record if isinstance(record, dict) else None,
    )


def plain_torch_writer(
    output: Path,
    specs: Mapping[str, TensorSpec],
    ties: Mapping[str, str],
    record: Mapping[str, Any],
    *,
    overwrite: bool,
) -> Writer:
    """A writer of a bare state dict, which has no room for the record.

    Args:
        output: the file.
        specs: shape and type of every tensor.
        ties: further names, with the tensor that they share.
        record: provenance of the tensors.
        overwrite: allow an output that exists to be replaced.
    """
    check_outputs(output, overwrite)
    layout = lay_out(specs, {alias: owner for alias, owner in ties.items() if owner in specs}, {})
    return SingleFileWriter(output, layout, record, overwrite=overwrite, checksums=checksum_places(layout))


def lay_out_like(template: TorchFileCheckpoint, specs: Mapping[str, TensorSpec], record: Mapping[str, Any]) -> Layout:
    """The layout of a file like ``template``: the same dictionaries and objects around other tensors.

    What belongs to the training that made the template is left out: optimizers, schedulers, callbacks, averages, and
    whatever else holds tensors beside the model. Of hyper-parameters nothing is left out.
    """
    found = template._found
    shell = kept_entries(template.content, found, record)
    kept = _kept_tensors(template, shell)

    def build(hollow: Mapping[str, Tensor]) -> Any:
        tensors = {name: hollow[template.ties.get(name, name)] for name in template.specs}
        if not found.where:
            return _filled(template.content, found, tensors)
        (key,) = found.where
        return {
            name: _filled(template.content[key], found, tensors) if name == key else value
            for name, value in shell.items()
        }

    return lay_out_objects(specs, build, kept, template._zip.protocol)


def kept_entries(content: Any, found: StateDict, record: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a wrapping dictionary that a merged file keeps; the state dict's own has no content yet."""
    if not found.where:
        return {}
    shell: dict[str, Any] = {}
    for name, value in content.items():
        if name in found.where:
            shell[name] = None
        elif name == "hyper_parameters" or not (_TRAINING.fullmatch(str(name)) or _holds_data(value)):
            shell[name] = value
    shell[PROVENANCE_KEY] = dict(record)
    return shell


def _holds_data(value: Any) -> bool:
    return any(isinstance(node, StoredTensor) for node, _ in walk(value))


def _kept_tensors(template: TorchFileCheckpoint, shell: Mapping[str, Any]) -> dict[StoredTensor, Tensor]:
    """The few tensors of what is kept (a loss with class weights among the hyper-parameters, for example)."""
    stored = {node for node, _ in walk(shell) if isinstance(node, StoredTensor)}
    if sum(tensor.spec.nbytes for tensor in stored) > _MAX_KEPT:
        raise CheckpointError(f"{template.path}: its hyper-parameters hold more than {_MAX_KEPT >> 20} MiB of tensors")
    for tensor in stored:
        template._zip.check("of hyper_parameters", tensor)
    return {tensor: template._zip.read(tensor).clone(memory_format=torch.contiguous_format) for tensor in stored}


def _filled(node: Any, found: StateDict, tensors: Mapping[str, Tensor], path: tuple[str, ...] = ()) -> Any:
    """The state dict with its nesting and attributes, and other tensors."""
    names = {place: name for name, place in found.paths.items()}

    def fill(node: Any, path: tuple[str, ...]) -> Any:
        if path in names:
            return tensors[names[path]]
        if not isinstance(node, Mapping):
            return node
        entries = ((key, fill(value, (*path, key))) for key, value in node.items())
        if not isinstance(node, TorchDict):
            return dict(entries)
        filled = TorchDict(entries)
        filled.attributes = node.attributes
        return filled

    return fill(node, path)
