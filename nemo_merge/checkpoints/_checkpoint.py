"""The one interface of all formats: a lazy reader, what it knows without reading a tensor, and an atomic writer."""

from __future__ import annotations

import logging
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Shaped
from torch import Tensor

from ..errors import CheckpointError, OutputError
from ..low_rank import LowRank
from ..posterior import Posterior
from ..vocabulary import Token, Vocabulary
from ._digests import sha256_of
from ._work import WorkFolder, check_output

logger = logging.getLogger("nemo_merge")

RECORD, CARD = "merge.yaml", "README.md"
"""Documents that accompany a merged checkpoint: its provenance, and its model card."""


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)  # torch's own product overflows without a word

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint says of its model.

    Attributes:
        format: name of the file format, for example ``nemo``.
        model_class: class that the checkpoint restores to, or None when it does not say.
        config: the model's configuration as plain data.
        tokenizers: content digest of each tokenizer artefact, by the place the configuration gives it. Names of the
            files are left out because NeMo changes them with every save.
        provenance: record of the merge that made this checkpoint, or None.
    """

    format: str
    model_class: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    tokenizers: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] | None = None


class Checkpoint(Mapping[str, Tensor], ABC):
    """A read-only mapping from tensor names to tensors that are read when they are used.

    Tensors are views of memory-mapped files where the format allows it: they take no memory until touched, and must
    not be written to. A checkpoint is a context manager; leaving it closes the files.

    Attributes:
        path: file or folder, or a label such as ``<state dict>``.
        specs: shape and type of every tensor, in the order of the file; tied names included.
        ties: names that share another tensor's data, with the name that owns it.
        metadata: what the checkpoint says of its model.
    """

    format: ClassVar[str]

    path: Path
    specs: Mapping[str, TensorSpec]
    ties: Mapping[str, str]
    metadata: Metadata
    added: frozenset[str] = frozenset()
    """Tensors that the model has from its adapters alone: those of several experts have no common origin."""

    holders: Mapping[Token, float] | None = None
    """For a merged model: the weight of the experts in it that have each of the tokens which the base lacks."""

    @abstractmethod
    def __getitem__(self, name: str) -> Shaped[Tensor, "..."]:
        """The tensor of that name, without copying it where the format allows."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    @property
    def files(self) -> list[Path]:
        """Files that hold the tensors."""
        return [self.path]

    @property
    def details(self) -> Mapping[str, Any]:
        """What the record of a merge says of this input beside its path, format and digests."""
        return {}

    def low_rank(self, name: str) -> LowRank | None:
        """The change that an adapter makes to a tensor of its base, as factors, or None where it is not known as such.

        A checkpoint that gives one for a tensor has the tensor in the base's shape.
        """
        return None

    def posterior(self, name: str) -> Posterior | None:
        """How sure the checkpoint is of the entries of a tensor, or None where it does not say."""
        return None

    def sha256(self, stop: threading.Event | None = None, *, anew: bool = False) -> dict[str, str]:
        """SHA-256 of every file that holds tensors, by file name.

        Args:
            stop: set from another thread to give up.
            anew: do not believe what is remembered of files that have not changed.

        Raises:
            CheckpointError: a file cannot be read.
        """
        return {path.name: sha256_of(path, stop, anew=anew) for path in self.files}

    def writer(
        self, output: Path, specs: Mapping[str, TensorSpec], record: Mapping[str, Any], *, overwrite: bool = False
    ) -> Writer:
        """A writer of a checkpoint like this one (same configuration, tokenizer, ties) with other tensor values.

        Args:
            output: where the new checkpoint goes; nothing appears there before :meth:`Writer.commit`.
            specs: shape and type of every tensor to be written, tied names left out.
            record: provenance of the tensors, as plain data; the checkpoint carries it. A writer for the same output
                and record goes on with what an interrupted one finished.
            overwrite: allow an output that exists to be replaced.

        Raises:
            OutputError: this format is only read, the output exists and ``overwrite`` is off, its folder cannot be
                written to, or another process is writing it.
        """
        raise OutputError(
            f"{output}: {self.path} is a checkpoint that can be read but not written ({self.format}); "
            "choose an output that ends in .safetensors or .pt"
        )

    def vocabulary(self) -> Vocabulary | None:
        """The token of every row of the output layer; None when the checkpoint does not tell.

        Raises:
            CheckpointError: its tokenizer files are missing, damaged or of a kind that is not supported.
        """
        return None

    def artefact(self, name: str) -> bytes:
        """The content of a file that is packed with the model, by the name that its configuration gives it.

        Raises:
            CheckpointError: there is no such file.
        """
        raise CheckpointError(f"{self.path}: a {self.format} has no packed file {name!r}")

    def with_vocabulary(self, wanted: Vocabulary, donors: Sequence[Checkpoint]) -> Checkpoint:
        """This checkpoint as the template of one with more tokens: configuration and tokenizer files grow, not tensors.

        Args:
            wanted: all tokens, as :func:`nemo_merge.vocabulary.union` puts them together.
            donors: checkpoints that have the tokens which this one lacks.

        Raises:
            CheckpointError: the format, or this tokenizer, cannot grow.
        """
        raise CheckpointError(f"{self.path}: the vocabulary of a {self.format} cannot grow; pass vocabulary=base")

    def close(self) -> None:
        """Closes the files; tensors read before stay valid as long as they are referenced."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Writer(ABC):
    """Takes tensors in any order and from any thread, and makes the checkpoint appear at once at the end.

    Use it as a context manager: leaving it without :meth:`commit` leaves no trace, except after Ctrl-C or SIGTERM, when
    finished tensors are kept for the same merge.

    Attributes:
        work: folder in which the output is made; None for one in memory.
    """

    work: WorkFolder | None = None

    @property
    def finished(self) -> set[str]:
        """Tensors that an interrupted process finished: they need not be written again."""
        return self.work.finished if self.work is not None else set()

    @abstractmethod
    def write(self, name: str, start: int, values: Shaped[Tensor, "..."]) -> None:
        """Writes consecutive elements of one tensor.

        Blocks of one tensor must come in order; different tensors may be written from different threads.

        Args:
            name: tensor name.
            start: index of the first element in the flattened tensor.
            values: elements, of the type that was announced for the tensor.

        Raises:
            OutputError: the disk is full or the file cannot be written.
        """

    @abstractmethod
    def commit(self, documents: Mapping[str, str] = MappingProxyType({})) -> None:
        """Adds configuration, tokenizer and provenance, and gives the checkpoint its name.

        Args:
            documents: texts that accompany the checkpoint, by name (``merge.yaml``, ``README.md``): inside where it is
                a folder, else beside it as ``OUTPUT.NAME``.

        Raises:
            OutputError: the file cannot be written or renamed.
        """

    def discard(self) -> None:
        """Removes everything written so far; does nothing after :meth:`commit`."""
        if self.work is not None:
            self.work.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        work = self.work
        if work is not None and kind is not None and issubclass(kind, (KeyboardInterrupt, SystemExit)):
            if work.pause():
                logger.warning("%s: finished tensors are kept; the same command goes on from there", work.output)
        else:
            self.discard()


def check_outputs(output: Path, overwrite: bool) -> None:
    """Refuses, as ``check_output`` does, a file that exists, or documents beside it."""
    for path in (output, *(beside(output, name) for name in (RECORD, CARD))):
        check_output(path, overwrite)


def beside(output: Path, document: str) -> Path:
    """Where a document about a checkpoint goes that is a single file.

    Example:
        >>> beside(Path("models/pt.nemo"), "merge.yaml").as_posix()
        'models/pt.nemo.merge.yaml'
    """
    return output.with_name(f"{output.name}.{document}")
