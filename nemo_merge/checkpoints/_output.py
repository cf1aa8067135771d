"""Chooses the format of an output from its name, and the input that lends it configuration and tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ._checkpoint import Checkpoint, TensorSpec, Writer
from .aligned import AlignedCheckpoint
from .dcp import DcpCheckpoint
from .lightning import LightningCheckpoint
from .nemo import NemoCheckpoint
from .safetensors_file import SafetensorsCheckpoint, safetensors_writer
from .torch_file import TorchFileCheckpoint, plain_torch_writer

_CONTAINERS: Mapping[str, tuple[type[Checkpoint], str]] = {
    ".nemo": (NemoCheckpoint, "a .nemo file, whose configuration and tokenizer the output takes over"),
    ".ckpt": (LightningCheckpoint, "a Lightning .ckpt, whose hyper-parameters the output takes over"),
}


def writer_for(
    template: Checkpoint,
    others: Iterable[Checkpoint],
    output: Path,
    specs: Mapping[str, TensorSpec],
    record: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> Writer:
    """A writer in the format that the output's name asks for.

    ``.safetensors``, ``.pt`` and ``.pth`` hold tensors alone and can be written from any input. The others need a
    container: an input of that format whose configuration and tokenizer go into the output: the template if it is one,
    else the first of the others.

    Args:
        template: the checkpoint whose tensors and names the output has.
        others: further inputs of the merge.
        output: where it goes; ``.nemo``, ``.ckpt``, ``.safetensors``, ``.pt``, ``.pth``, or any other name for the
            template's own format.
        specs: shape and type of every tensor, tied names left out.
        record: provenance of the tensors.
        overwrite: allow an output that exists to be replaced.

    Raises:
        OutputError: no input can be the container; or as :meth:`Checkpoint.writer`.
    """
    if isinstance(template, AlignedCheckpoint):
        template = template.own
    container = container_for(template, others, output)
    if container is not None:
        return container.writer(output, specs, record, overwrite=overwrite)
    if output.suffix.lower() == ".safetensors":
        return safetensors_writer(output, specs, template.ties, record, {}, overwrite=overwrite)
    return plain_torch_writer(output, specs, template.ties, record, overwrite=overwrite)


def container_for(template: Checkpoint, others: Iterable[Checkpoint], output: Path) -> Checkpoint | None:
    """The input whose format, configuration and tokenizer an output of this name takes over; None for tensors alone.

    Args:
        template: as in :func:`writer_for`.
        others: as in :func:`writer_for`.
        output: as in :func:`writer_for`.

    Raises:
        OutputError: the format needs a container and no input can be it, or it cannot be written.
    """
    suffix = output.suffix.lower()
    if suffix == ".safetensors":
        return template if isinstance(template, SafetensorsCheckpoint) else None
    bare = type(template) is TorchFileCheckpoint
    if suffix in (".pt", ".pth"):
        return template if bare else None
    if suffix in _CONTAINERS and not (bare and suffix == ".ckpt"):
        kind, needed = _CONTAINERS[suffix]
        container = _container(template, others, kind)
        if container is None:
            raise OutputError(
                f"{output}: cannot be written in this format, because neither {template.path} ({template.format}) nor "
                f"another input with the same tensors is {needed}; choose an output that ends in .safetensors or .pt"
            )
        return container
    if isinstance(template, DcpCheckpoint):
        raise OutputError(
            f"{output}: {template.path} is a distributed checkpoint, which can be read but not written; "
            "choose an output that ends in .safetensors or .pt"
        )
    return template


def _container(template: Checkpoint, others: Iterable[Checkpoint], kind: type[Checkpoint]) -> Checkpoint | None:
    if isinstance(template, kind):
        return template
    for other in others:
        inner = getattr(other, "inner", other)  # an input whose names were adapted to the template's
        if isinstance(inner, kind) and _own(inner) == _own(template):
            return inner
    return None


def _own(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors, tied ones once."""
    return {name: spec.shape for name, spec in checkpoint.specs.items() if name not in checkpoint.ties}
