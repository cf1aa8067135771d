"""Opens a checkpoint of any format; its content decides, not its name."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from ._checkpoint import Checkpoint
from ._nemo_config import CONFIG, WEIGHTS
from ._torch_zip import TorchZip
from .adapter import AdapterCheckpoint, is_adapter
from .dcp import METADATA, DcpCheckpoint
from .huggingface import INDEX, SINGLE, HuggingFaceCheckpoint
from .huggingface_bin import BIN_INDEX, BIN_SINGLE, HuggingFaceBinCheckpoint
from .lightning import LightningCheckpoint, is_lightning
from .nemo import NemoCheckpoint
from .nemo_adapter import NemoAdapterCheckpoint, is_nemo_adapter
from .nemo_folder import NemoFolderCheckpoint
from .pack import PACK, PackCheckpoint
from .safetensors_file import SafetensorsCheckpoint
from .torch_file import TorchFileCheckpoint

READABLE = (
    "a .nemo file or its unpacked folder, a Hugging Face folder, a safetensors file, a Lightning .ckpt, "
    "a state dict saved by torch.save (.pt, .pth), a distributed checkpoint, an adapter of PEFT or NeMo, "
    "an expert pack"
)
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that torch.save wrote first before 1.6
_MAX_SAFETENSORS_HEADER = 100_000_000

# What other files begin with, and what to do about them.
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (_LEGACY_TORCH, "was saved by PyTorch before 1.6; convert it once with a PyTorch of today: "
     "torch.save(torch.load(FILE, map_location='cpu', weights_only=True), NEW)"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself; run `git lfs pull`"),
    (b"<!DOCTYPE", "is a web page; download the file itself"),
    (b"<html", "is a web page; download the file itself"),
    (b"\x89HDF", "is HDF5 (Keras, TensorFlow); convert it to safetensors first"),
    (b"GGUF", "is GGUF, whose weights are quantised; merge the original weights"),
    (b"\x93NUMPY", "is a NumPy array; a checkpoint holds named tensors"),
    (b"\x80", "is a Python pickle without PyTorch's archive around it; load it with the program that wrote it "
     "and save the state dict with torch.save"),
)  # fmt: skip


def open_checkpoint(path: str | os.PathLike[str], *, ema: bool = False, prefix: str | None = None) -> Checkpoint:
    """Opens a checkpoint of any supported format without reading its tensors.

    Example:
        >>> import torch, tempfile
        >>> file = tempfile.mkdtemp() + "/model.pt"
        >>> torch.save({"model": {"weight": torch.ones(2, 3)}, "epoch": 5}, file)
        >>> checkpoint = open_checkpoint(file)
        >>> checkpoint.format, checkpoint.specs["weight"].shape
        ('torch', (2, 3))

    Args:
        path: a file or a folder; see ``docs/reference/formats.md``.
        ema: take the averaged weights (EMA) that the training kept beside the last ones.
        prefix: what stands before the names of a PEFT adapter in its base, where that is not clear without.

    Returns:
        A read-only mapping from names to lazily read tensors.

    Raises:
        CheckpointError: it does not exist, is damaged, unsafe, or of a format that is not supported; or averaged
            weights were asked for and there are none.
        ConfigError: a prefix for what is no adapter.
    """
    path = Path(path)
    try:
        checkpoint = _open(path, ema, prefix)
    except OSError as error:  # a disk or network that fails in the middle
        raise CheckpointError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from error
    if not checkpoint.specs:
        checkpoint.close()
        raise CheckpointError(f"{path}: holds no tensors")
    return checkpoint


def _open(path: Path, ema: bool, prefix: str | None) -> Checkpoint:
    if path.exists() and is_adapter(path):
        if ema:
            raise _no_averages(path)
        return AdapterCheckpoint(path, prefix)
    if prefix is not None:
        raise ConfigError(f"{path}: prefix={prefix!r} is for PEFT adapters only")
    if path.is_dir():
        checkpoint = _folder(path)(path)
        if ema:
            checkpoint.close()
            raise _no_averages(path)
        return checkpoint
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    return _open_file(path, ema)


def _no_averages(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path}: this format holds no averaged weights beside the others (Lightning and torch files may); "
        "leave out ema=true"
    )


def _folder(path: Path) -> Callable[[Path], Checkpoint]:
    """The reader for a folder, from the names in it."""

    def has(*names: str) -> bool:
        return any((path / name).is_file() for name in names)

    if has(WEIGHTS) and has(CONFIG):
        return NemoFolderCheckpoint
    if has(METADATA):
        return DcpCheckpoint
    if has(INDEX, SINGLE):
        return HuggingFaceCheckpoint
    if has(BIN_INDEX, BIN_SINGLE):
        return HuggingFaceBinCheckpoint
    archives = sorted(path.glob("*.nemo"))
    if len(archives) == 1:
        return lambda _: _open_file(archives[0], False)
    names = sorted(item.name + "/" * item.is_dir() for item in path.iterdir())
    held = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
    raise CheckpointError(
        f"{path}: not a model folder: neither {SINGLE} nor {INDEX}, {BIN_SINGLE}, {CONFIG} with {WEIGHTS}, "
        f"{METADATA} or one .nemo inside; it holds {held}. Name the checkpoint itself"
    )


def _open_file(path: Path, ema: bool) -> Checkpoint:
    if not path.is_file():
        raise CheckpointError(f"{path}: is no file (a device or a pipe?); tensors are read from files only")
    with open(path, "rb") as file:
        head = file.read(1024)
        size = os.fstat(file.fileno()).st_size
    if head.startswith(b"PK\x03\x04"):
        archive = TorchZip(path, placeholders=True)
        if is_nemo_adapter(archive.content):
            if ema:
                raise _no_averages(path)
            return NemoAdapterCheckpoint(path, archive=archive)
        kind = LightningCheckpoint if is_lightning(archive.content) else TorchFileCheckpoint
        return kind(path, ema=ema, archive=archive)
    opener: Callable[[Path], Checkpoint]
    if head.startswith(b"\x1f\x8b") or _is_tar(path, head):
        opener = NemoCheckpoint
    elif _is_safetensors(head, size):
        opener = _safetensors
    else:
        raise CheckpointError(f"{path}: {_what_else(head, size)}. What can be read: {READABLE}")
    if ema:
        raise _no_averages(path)
    return opener(path)


def _safetensors(path: Path) -> Checkpoint:
    file = SafetensorsCheckpoint(path)
    return PackCheckpoint(path, file) if PACK in file.file_metadata else file


def _is_tar(path: Path, head: bytes) -> bool:
    if head[257:262] == b"ustar":
        return True
    try:  # tars of before 1988 have no mark, and Python's own "v7" writes such
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length <= max(_MAX_SAFETENSORS_HEADER, size)


def _what_else(head: bytes, size: int) -> str:
    if not head:
        return "is empty"
    for magic, meaning in _OTHERS:
        if head.lstrip()[: len(magic)].lower() == magic.lower() or head.startswith(magic):
            return meaning
    shown: Any = head[:8]
    return f"not a checkpoint of a known format, or cut short ({size} bytes, beginning with {shown!r})"
