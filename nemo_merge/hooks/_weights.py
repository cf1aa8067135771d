"""The weights of a model in training as a checkpoint, and merged weights in it while they are validated."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..checkpoints import Checkpoint, Metadata, NemoCheckpoint, StateDictCheckpoint, open_checkpoint, writer_for
from ..checkpoints._pending import explained
from ..errors import CheckpointError, OutputError
from ..merging.inputs import RenamedCheckpoint, renamed
from ..merging.ranks import Ranks

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

SHELL = "model.nemo"


class _Held(Checkpoint):
    """A checkpoint whose tensors another one holds."""

    _held: Checkpoint

    def _hold(self, held: Checkpoint, label: str) -> None:
        self._held, self.path = held, Path(label)
        self.specs, self.ties = held.specs, held.ties

    def __getitem__(self, name: str) -> Tensor:
        return self._held[name].cpu()

    @property
    def files(self) -> list[Path]:
        return self._held.files

    def sha256(self, stop: Any = None, *, anew: bool = False) -> dict[str, str]:
        """Digests of the files, or of all tensors where they are in memory."""
        return super().sha256(stop, anew=anew) if self.files else {"state_dict": digest_of(self)}


class TrainedNemo(_Held, NemoCheckpoint):
    """Weights of a NeMo model in training: configuration and tokenizer are in a ``.nemo`` without weights."""

    def __init__(self, shell: Path, held: Checkpoint, label: str) -> None:
        super().__init__(shell)
        self._hold(held, label)


class TrainedTensors(_Held):
    """Weights of any other model in training."""

    format = "state dict"

    def __init__(self, held: Checkpoint, label: str) -> None:
        self._hold(held, label)
        self.metadata = Metadata(self.format)


def state_of(module: LightningModule) -> dict[str, Tensor]:
    """The tensors that the model trains on now, not copies of them."""
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def trained(module: LightningModule, folder: Path, label: str, held: Checkpoint | None = None) -> Checkpoint:
    """A model in training as an input of a merge.

    Args:
        module: the model.
        folder: where a NeMo model's configuration and tokenizer are kept; they are written when needed first.
        label: what messages and the record of the merge call it.
        held: other weights of this model; by default those that it has now, which are read when the merge reads them.
    """
    held = held if held is not None else StateDictCheckpoint(state_of(module), label)
    if not _is_nemo(module):
        return TrainedTensors(held, label)
    shell = folder / SHELL
    if not shell.is_file():
        _write_shell(module, shell)
    return TrainedNemo(shell, held, label)


def snapshot(path: Path, ties: Mapping[str, str]) -> Checkpoint:
    """Weights that :func:`write_snapshot` wrote, with the further names of tied tensors."""
    inner = open_checkpoint(str(path))
    return RenamedCheckpoint(inner, {**{name: name for name in inner.specs}, **ties})


def write_snapshot(module: LightningModule, path: Path) -> dict[str, str]:
    """Writes the weights as safetensors, which appear at once.

    Returns:
        Names that share another tensor's data, with the name that owns it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    held = StateDictCheckpoint(state_of(module))
    partial = path.with_name(f".{path.name}.partial")
    tensors = {name: held[name].cpu().contiguous() for name in held.specs if name not in held.ties}
    try:
        with explained(path):
            save_file(tensors, partial)
            os.replace(partial, path)
    except SafetensorError as error:
        raise OutputError(f"{path}: cannot be written ({error})") from error
    finally:
        partial.unlink(missing_ok=True)
    return dict(held.ties)


def save_model(module: LightningModule, path: Path) -> None:
    """Saves the model, a NeMo model with its own ``save_to``; the file appears at once."""
    if _is_nemo(module):
        partial = path.with_name(f".{path.stem}.partial{path.suffix}")
        try:
            with explained(path):
                cast(Any, module).save_to(str(partial))
                os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return
    weights = TrainedTensors(StateDictCheckpoint(state_of(module)), "model in training")
    specs = {name: spec for name, spec in weights.specs.items() if name not in weights.ties}
    with writer_for(weights, [], path, specs, {}, overwrite=True) as writer:
        for name in specs:
            writer.write(name, 0, weights[name].flatten())
        writer.commit()


@contextmanager
def swapped(module: LightningModule, path: Path, ranks: Ranks) -> Iterator[None]:
    """Gives the model the weights of a file for a while, then its own again, to the bit.

    Rank 0 reads the file and the others get its tensors. Each rank keeps one copy of the model in CPU memory.
    """
    own = state_of(module)
    with torch.no_grad():
        before = {name: value.to("cpu", copy=True) for name, value in own.items()}
        try:
            with ranks.together():
                if ranks.first:
                    with open_checkpoint(str(path)) as file:
                        weights = renamed(file, StateDictCheckpoint(own, "model in training"))
                        if lost := sorted(own.keys() - weights.specs.keys()):
                            raise CheckpointError(f"{path}: tensor {lost[0]!r} is missing")
                        for name, value in own.items():
                            value.copy_(weights[name])
            for value in own.values() if ranks.count > 1 else ():
                _broadcast(value, module.device)
            yield
        finally:
            for name, value in own.items():
                value.copy_(before[name])


def _broadcast(value: Tensor, device: torch.device) -> None:
    """Gives all ranks the tensor of rank 0; one that is elsewhere travels by the model's device."""
    sent = value.to(device).contiguous()
    torch.distributed.broadcast(sent, src=0)
    value.copy_(sent)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_nemo(module: LightningModule) -> bool:
    known = sys.modules.get("nemo.core.classes.modelPT")  # a NeMo model cannot be there without it
    return known is not None and isinstance(module, known.ModelPT)


def _write_shell(module: LightningModule, path: Path) -> None:
    """Writes what belongs to a ``.nemo`` beside the weights."""
    from nemo.core.connectors.save_restore_connector import SaveRestoreConnector

    class Shell(SaveRestoreConnector):
        @staticmethod
        def _save_state_dict_to_disk(state_dict: Any, filepath: str) -> None:
            torch.save({"none": torch.zeros(1)}, filepath)

    Shell().save_to(module, str(path))
