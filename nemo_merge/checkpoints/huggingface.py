"""Hugging Face model folders: ``config.json``, tokenizer files and safetensors, in one file or in shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from ..vocabulary import Vocabulary
from ._checkpoint import CARD, RECORD, Checkpoint, Metadata, TensorSpec, Writer
from ._huggingface_vocabulary import read_vocabulary
from ._pending import Layout, Slot
from ._work import WorkFolder, check_output, key_of
from ._yaml import dump, load

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZER_FILES = (
    "tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "sentencepiece.bpe.model", "added_tokens.json",
)  # fmt: skip
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".index.json")
_MAX_TEXT = 64 << 20

# Type names of the safetensors format.
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class HuggingFaceCheckpoint(Checkpoint):
    """A folder as ``save_pretrained`` writes it; tensors are mapped, so that opening it reads only the headers.

    Tied weights (``proj_out`` of Whisper) are left out of such files and stay out of merged ones.

    Raises:
        CheckpointError: no safetensors inside, damaged or cut short, or an index that names files outside the folder.
    """

    format = "huggingface"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.shards = self._find_shards()
        self.ties = {}
        self._handles: dict[str, Any] = {}
        self.file_metadata: dict[str, dict[str, str]] = {}
        self._homes: dict[str, str] = {}
        specs: dict[str, TensorSpec] = {}
        for shard, names in self.shards.items():
            handle = self._open(shard)
            present = list(handle.keys())
            missing = [name for name in names or () if name not in present]
            if missing:
                raise CheckpointError(
                    f"{self.path / shard}: the index promises tensor {missing[0]!r}, which is not in it"
                )
            self.file_metadata[shard] = handle.metadata() or {}
            for name in present:
                view = handle.get_slice(name)
                specs[name] = TensorSpec(tuple(view.get_shape()), self._dtype(view.get_dtype(), shard, name))
                self._homes[name] = shard
        self.specs = specs
        self.metadata = self._read_metadata()

    def __getitem__(self, name: str) -> Tensor:
        return self._handles[self._homes[name]].get_tensor(name)

    @property
    def files(self) -> list[Path]:
        return [self.path / shard for shard in self.shards]

    def close(self) -> None:
        self._handles.clear()

    def writer(
        self, output: Path, specs: Mapping[str, TensorSpec], record: Mapping[str, Any], *, overwrite: bool = False
    ) -> Writer:
        return HuggingFaceWriter(self, output, specs, record, overwrite=overwrite)

    def vocabulary(self) -> Vocabulary | None:
        return read_vocabulary(self.path, self._json)

    def with_vocabulary(self, wanted: Vocabulary, donors: Sequence[Checkpoint]) -> HuggingFaceCheckpoint:
        raise CheckpointError(
            f"{self.path}: tokenizers of Hugging Face folders cannot grow: further tokens would need merges of their "
            "own and, in Whisper, stand where timestamps are expected; pass vocabulary=base to keep the base's tokens"
        )

    def home(self, name: str) -> str:
        """Name of the shard that holds a tensor."""
        return self._homes[name]

    def _find_shards(self) -> dict[str, list[str] | None]:
        """Names of the shards and, where an index lists them, of their tensors."""
        index = self.path / INDEX
        if not index.is_file():
            if (self.path / SINGLE).is_file():
                return {SINGLE: None}
            hint = (
                "it holds pytorch_model.bin: load it with transformers and save it again"
                if list(self.path.glob("*.bin"))
                else "is it a model folder?"
            )
            raise CheckpointError(f"{self.path}: neither {SINGLE} nor {INDEX} inside; {hint}")
        homes = self._json(index).get("weight_map")
        if not isinstance(homes, dict) or not homes:
            raise CheckpointError(f"{index}: no weight_map inside")
        shards: dict[str, list[str] | None] = {}
        for name, shard in homes.items():
            if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise CheckpointError(
                    f"{index}: refused, tensor {name!r} is said to be in {shard!r}, outside the folder"
                )
            listed = shards.setdefault(shard, [])
            assert listed is not None
            listed.append(name)
        return shards

    def _open(self, shard: str) -> Any:
        path = self.path / shard
        try:
            handle = safe_open(path, framework="pt")
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: missing, although {INDEX} lists it; fetch it again") from error
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path}: damaged or cut short ({error}); fetch it again") from error
        self._handles[shard] = handle
        return handle

    def _dtype(self, dtype: str, shard: str, name: str) -> torch.dtype:
        if dtype not in _DTYPES:
            raise CheckpointError(
                f"{self.path / shard}: tensor {name!r} has the type {dtype}, which PyTorch cannot hold"
            )
        return _DTYPES[dtype]

    def _read_metadata(self) -> Metadata:
        config = self._json(self.path / "config.json") if (self.path / "config.json").is_file() else {}
        architectures = config.get("architectures")
        model_class = (
            architectures[0] if isinstance(architectures, list) and architectures else config.get("model_type")
        )
        tokenizers = {
            name: hashlib.sha256((self.path / name).read_bytes()).hexdigest()[:16]
            for name in _TOKENIZER_FILES
            if (self.path / name).is_file()
        }
        record = self.path / RECORD
        provenance = load(self._text(record), record) if record.is_file() else None
        return Metadata("huggingface", model_class, config, tokenizers, provenance)

    def _json(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(self._text(path))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: not valid JSON ({error})") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path}: not a JSON object")
        return content

    def _text(self, path: Path) -> str:
        try:
            if path.stat().st_size > _MAX_TEXT:
                raise CheckpointError(f"{path}: too large to be a configuration")
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path}: not a text file ({error})") from error
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error


class HuggingFaceWriter(Writer):
    """Writes a folder with the template's shards, configuration and tokenizer files and other weights.

    The merge's record becomes ``merge.yaml`` in the folder.
    """

    def __init__(
        self,
        template: HuggingFaceCheckpoint,
        output: Path,
        specs: Mapping[str, TensorSpec],
        record: Mapping[str, Any],
        *,
        overwrite: bool,
    ) -> None:
        check_output(output, overwrite)
        self._template = template
        self._record = record
        self.work: WorkFolder = WorkFolder(output, key_of(record))
        self._homes: dict[str, str] = {}
        try:
            for shard in template.shards:
                held = {name: spec for name, spec in specs.items() if template.home(name) == shard}
                self._homes.update(dict.fromkeys(held, shard))
                self.work.add(shard, lay_out(held, template.file_metadata[shard]))
        except BaseException:
            self.discard()
            raise

    def write(self, name: str, start: int, values: Tensor) -> None:
        self.work.files[self._homes[name]].write(name, start, values)

    def commit(self, documents: Mapping[str, str] = MappingProxyType({})) -> None:
        small: dict[str, bytes | Path] = {
            path.name: path
            for path in sorted(self._template.path.iterdir())
            if path.is_file() and not path.name.endswith(_WEIGHT_SUFFIXES) and path.name != CARD
        }
        if INDEX not in small and (self._template.path / INDEX).is_file():
            small[INDEX] = self._index()
        small[RECORD] = dump(self._record).encode()
        small.update({name: text.encode() for name, text in documents.items()})
        self.work.publish_folder(small)

    def _index(self) -> bytes:
        total = sum(slot.nbytes for file in self.work.files.values() for slot in file.layout.slots.values())
        index = self._template._json(self._template.path / INDEX)
        metadata = {**index.get("metadata", {}), "total_size": total}
        content = {"metadata": metadata, "weight_map": dict(sorted(self._homes.items()))}
        return (json.dumps(content, indent=2) + "\n").encode()


def lay_out(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> Layout:
    """The layout of a safetensors file: a length, a JSON header, then the tensors without gaps.

    Wide types come first, so that every tensor is aligned; names decide among equals, so that the bytes do not depend
    on the order of the dictionary.
    """
    order = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name in order:
        spec = specs[name]
        header[name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [position, position + spec.nbytes],
        }
        position += spec.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    slots = {name: Slot(start + header[name]["data_offsets"][0], specs[name].nbytes) for name in order}
    return Layout(start + position, {0: len(text).to_bytes(8, "little") + text}, slots)
