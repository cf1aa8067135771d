"""Hugging Face model folders: ``config.json``, tokenizer files and safetensors, in one file or in shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor

from ..errors import CheckpointError
from ..vocabulary import Vocabulary
from ._checkpoint import CARD, RECORD, Checkpoint, Metadata, TensorSpec, Writer
from ._huggingface_vocabulary import read_vocabulary
from ._safetensors import lay_out, open_safetensors, specs_of
from ._work import WorkFolder, check_output, key_of
from ._yaml import dump, load

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZER_FILES = (
    "tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "sentencepiece.bpe.model", "added_tokens.json",
)  # fmt: skip
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".index.json")
_MAX_TEXT = 16 << 20


class HuggingFaceCheckpoint(Checkpoint):
    """A folder as ``save_pretrained`` writes it; tensors are mapped, so that opening it reads only the headers.

    Tied weights (``proj_out`` of Whisper) are left out of such files and stay out of merged ones.

    Attributes:
        shards: the files that hold tensors, with the names of the tensors where an index lists them.
        file_metadata: metadata of each file's header.

    Raises:
        CheckpointError: no weights inside, damaged or cut short, or an index that names files outside the folder.
    """

    format = "huggingface"
    single: ClassVar[str] = SINGLE
    index: ClassVar[str] = INDEX

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.shards = self._find_shards()
        self.file_metadata: dict[str, dict[str, str]] = {}
        self.ties = {}
        self._homes: dict[str, str] = {}
        self._handles: dict[str, Any] = {}
        specs: dict[str, TensorSpec] = {}
        for shard, names in self.shards.items():
            found = self._open(shard)
            missing = [name for name in names or () if name not in found]
            if missing:
                raise CheckpointError(
                    f"{self.path / shard}: the index promises tensor {missing[0]!r}, which is not in it"
                )
            specs.update(found)
            self._homes.update(dict.fromkeys(found, shard))
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
        """Name of the file that a merged tensor goes to: the one that holds it here."""
        return self._homes[name]

    def _find_shards(self) -> dict[str, list[str] | None]:
        """Names of the shards and, where an index lists them, of their tensors."""
        index = self.path / self.index
        if not index.is_file():
            if (self.path / self.single).is_file():
                return {self.single: None}
            raise CheckpointError(f"{self.path}: neither {self.single} nor {self.index} inside; is it a model folder?")
        homes = self._json(index).get("weight_map")
        if not isinstance(homes, dict) or not homes:
            raise CheckpointError(f"{index}: no weight_map inside")
        shards: dict[str, list[str] | None] = {}
        suffix = Path(self.single).suffix
        for name, shard in homes.items():
            if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(suffix):
                raise CheckpointError(
                    f"{index}: refused, tensor {name!r} is said to be in {shard!r}, outside the folder"
                )
            listed = shards.setdefault(shard, [])
            assert listed is not None
            listed.append(name)
        return shards

    def _open(self, shard: str) -> dict[str, TensorSpec]:
        """Opens a shard and gives the tensors that it holds."""
        path = self.path / shard
        handle = open_safetensors(path, f"missing, although {self.index} lists it; fetch it again")
        self._handles[shard] = handle
        self.file_metadata[shard] = handle.metadata() or {}
        return specs_of(handle, path)

    def _read_metadata(self) -> Metadata:
        config = self._json(self.path / "config.json") if (self.path / "config.json").is_file() else {}
        architectures = config.get("architectures")
        model_class = (
            architectures[0] if isinstance(architectures, list) and architectures else config.get("model_type")
        )
        tokenizers = {name: _digest(self.path / name) for name in _TOKENIZER_FILES if (self.path / name).is_file()}
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


def side_files(folder: Path) -> list[Path]:
    """Files of a model's folder that are neither weights nor its card: configuration, tokenizer, features."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.endswith(_WEIGHT_SUFFIXES) and path.name != CARD
    ]


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


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
        try:
            self._homes = {name: template.home(name) for name in specs}
            for shard in dict.fromkeys(self._homes.values()):
                held = {name: spec for name, spec in specs.items() if self._homes[name] == shard}
                self.work.add(shard, lay_out(held, template.file_metadata.get(shard, {"format": "pt"})))
        except BaseException:
            self.discard()
            raise

    def write(self, name: str, start: int, values: Tensor) -> None:
        self.work.files[self._homes[name]].write(name, start, values)

    def commit(self, documents: Mapping[str, str] = MappingProxyType({})) -> None:
        small: dict[str, bytes | Path] = {path.name: path for path in side_files(self._template.path)}
        if (self._template.path / self._template.index).is_file():
            small[INDEX] = self._index()
        small[RECORD] = dump(self._record).encode()
        small.update({name: text.encode() for name, text in documents.items()})
        self.work.publish_folder(small)

    def _index(self) -> bytes:
        total = sum(slot.nbytes for file in self.work.files.values() for slot in file.layout.slots.values())
        index = self._template._json(self._template.path / self._template.index)
        metadata = {**index.get("metadata", {}), "total_size": total}
        content = {"metadata": metadata, "weight_map": dict(sorted(self._homes.items()))}
        return (json.dumps(content, indent=2) + "\n").encode()
