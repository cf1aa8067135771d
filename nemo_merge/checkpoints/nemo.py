"""NVIDIA NeMo's ``.nemo``: a tar (sometimes gzipped) of configuration, weights and tokenizer files."""

from __future__ import annotations

import copy
import dataclasses
import gzip
import hashlib
import io
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import IO, Any

from torch import Tensor

from ..errors import CheckpointError
from ..vocabulary import Vocabulary
from ._checkpoint import Checkpoint, Metadata, TensorSpec, Writer, beside, check_outputs
from ._nemo_vocabulary import Changes, grow_vocabulary, read_vocabulary
from ._pending import Layout, Slot, explained
from ._torch_zip import StoredTensor, TorchZip, checksum_places, lay_out
from ._work import WorkFolder, key_of, write_whole
from ._yaml import changed_config, dump, load

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
PROVENANCE_KEY = "nemo_merge"
_GZIP_MAGIC = b"\x1f\x8b"
_MAX_CONFIG = 16 << 20
_BLOCK = tarfile.BLOCKSIZE


class NemoCheckpoint(Checkpoint):
    """A ``.nemo`` file; tensors are mapped inside the tar, so that opening a file of any size takes milliseconds.

    A gzipped file is unpacked into a temporary folder first, once.

    Raises:
        CheckpointError: not a tar, cut short, no weights, or a pickle that holds more than tensors.
    """

    format = "nemo"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._unpacked: tempfile.TemporaryDirectory[str] | None = None
        self._tar_path = self._plain_tar()
        self._added: dict[str, bytes] = {}
        try:
            with _open_tar(self._tar_path, self.path) as tar:
                members = _members(tar, self.path)
                weights, config = _one(members, WEIGHTS, self.path), _one(members, CONFIG, self.path)
                self._others = [m for m in members if m.isfile() and m is not weights and m is not config]
                self._weights, self._config = weights, config
                self.config_text = _read_member(tar, config, self.path, _MAX_CONFIG).decode("utf-8", "replace")
                self._zip = TorchZip(self._tar_path, weights.offset_data, weights.size, f"{self.path} ({WEIGHTS})")
                self.metadata = self._read_metadata(tar)
            self._stored = self._check_state_dict(self._zip.content)
        except BaseException:
            self.close()
            raise
        owners: dict[StoredTensor, str] = {}
        self.ties = {
            name: owner for name, stored in self._stored.items() if (owner := owners.setdefault(stored, name)) != name
        }
        self.specs = {name: stored.spec for name, stored in self._stored.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._zip.read(self._stored[name])

    def close(self) -> None:
        if self._unpacked is not None:
            self._unpacked.cleanup()
            self._unpacked = None

    def writer(
        self, output: Path, specs: Mapping[str, TensorSpec], record: Mapping[str, Any], *, overwrite: bool = False
    ) -> Writer:
        return NemoWriter(self, output, specs, record, overwrite=overwrite)

    def artefact(self, name: str) -> bytes:
        if name in self._added:
            return self._added[name]
        with _open_tar(self._tar_path, self.path) as tar:
            member = next((member for member in self._others if PurePosixPath(member.name).name == name), None)
            if member is None:
                raise CheckpointError(f"{self.path}: its configuration names nemo:{name}, which is not in the file")
            return _read_member(tar, member, self.path, member.size)

    def vocabulary(self) -> Vocabulary | None:
        return read_vocabulary(self)

    def with_vocabulary(self, wanted: Vocabulary, donors: Sequence[Checkpoint]) -> NemoCheckpoint:
        return self.with_changes(grow_vocabulary(self, wanted, donors))

    def with_changes(self, changes: Changes) -> NemoCheckpoint:
        """The same weights with another configuration and other packed files, as the template of a writer.

        It reads from this checkpoint, which must stay open. Files that its configuration names no longer are left out.
        """
        config, text = changed_config(self.config_text, changes.config, self.path)
        wanted = _packed(config)
        lost = _packed(self.metadata.config) - wanted
        other = copy.copy(self)
        other._unpacked = None  # belongs to this checkpoint
        other._added = {name: data for name, data in {**self._added, **changes.artefacts}.items() if name in wanted}
        other._others = [
            member for member in self._others if PurePosixPath(member.name).name not in lost | other._added.keys()
        ]
        other.config_text = text
        other.metadata = dataclasses.replace(self.metadata, config=config, tokenizers=_digests(config, other.artefact))
        return other

    def _plain_tar(self) -> Path:
        try:
            with open(self.path, "rb") as file:
                if file.read(2) != _GZIP_MAGIC:
                    return self.path
            self._unpacked = tempfile.TemporaryDirectory(prefix="nemo_merge-")
            plain = Path(self._unpacked.name, "plain.tar")
            with explained(plain), gzip.open(self.path, "rb") as packed, open(plain, "wb") as unpacked:
                try:
                    shutil.copyfileobj(packed, unpacked, 16 << 20)
                except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                    raise CheckpointError(f"{self.path}: damaged or cut short ({error}); fetch it again") from error
            return plain
        except OSError as error:
            self.close()
            raise CheckpointError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        except BaseException:
            self.close()
            raise

    def _check_state_dict(self, content: Any) -> dict[str, StoredTensor]:
        if not isinstance(content, Mapping) or not all(isinstance(value, StoredTensor) for value in content.values()):
            raise CheckpointError(f"{self.path}: {WEIGHTS} is not a state dict")
        for name, stored in content.items():
            self._zip.check(name, stored)
        return dict(content)

    def _read_metadata(self, tar: tarfile.TarFile) -> Metadata:
        config = load(self.config_text, f"{self.path} ({CONFIG})")
        artefacts = {PurePosixPath(member.name).name: member for member in self._others}

        def read(name: str) -> bytes:
            if name not in artefacts:
                raise CheckpointError(f"{self.path}: its configuration names nemo:{name}, which is not in the file")
            return _read_member(tar, artefacts[name], self.path, artefacts[name].size)

        digests = _digests(config, read)
        provenance = config.get(PROVENANCE_KEY)
        return Metadata(
            "nemo", config.get("target"), config, digests, provenance if isinstance(provenance, dict) else None
        )


class NemoWriter(Writer):
    """Writes a ``.nemo`` like ``template`` with other weights; stock NeMo restores it without this package.

    The merge's record becomes the key ``nemo_merge`` of the model configuration, which NeMo keeps through
    restoring and saving again.
    """

    def __init__(
        self,
        template: NemoCheckpoint,
        output: Path,
        specs: Mapping[str, TensorSpec],
        record: Mapping[str, Any],
        *,
        overwrite: bool,
    ) -> None:
        check_outputs(output, overwrite)
        self._template = template
        self._record = record
        ties = {alias: owner for alias, owner in template.ties.items() if owner in specs}
        zipped = lay_out(specs, ties, getattr(template._zip.content, "__dict__", {}))
        self._checksums = checksum_places(zipped)
        info = copy.copy(template._weights)
        info.size = zipped.size
        header = info.tobuf(tarfile.GNU_FORMAT)
        shift = len(header)
        self._shift = shift
        layout = Layout(
            size=shift + -(-zipped.size // _BLOCK) * _BLOCK,
            constants={0: header, **{offset + shift: data for offset, data in zipped.constants.items()}},
            slots={name: Slot(slot.offset + shift, slot.nbytes) for name, slot in zipped.slots.items()},
        )
        self.work: WorkFolder = WorkFolder(output, key_of(record))
        try:
            self._file = self.work.add(output.name, layout, checksums=True)
        except BaseException:
            self.discard()
            raise

    def write(self, name: str, start: int, values: Tensor) -> None:
        self._file.write(name, start, values)

    def commit(self, documents: Mapping[str, str] = MappingProxyType({})) -> None:
        for name, places in self._checksums.items():
            for place in places:
                self._file.put(place + self._shift, self._file.checksums[name].to_bytes(4, "little"))
        config = copy.copy(self._template._config)
        text = _with_provenance(self._template, self._record).encode()
        config.size = len(text)
        self._append_member(config, io.BytesIO(text))
        with _open_tar(self._template._tar_path, self._template.path) as tar:
            for member in self._template._others:
                source = tar.extractfile(member)
                assert source is not None  # only regular files are kept
                self._append_member(member, source)
        for name, data in self._template._added.items():
            added = copy.copy(self._template._config)
            added.name, added.size = self._template._config.name.removesuffix(CONFIG) + name, len(data)
            self._append_member(added, io.BytesIO(data))
        self._file.append(bytes(2 * _BLOCK))
        self.work.publish_file(self._file.path.name)
        for name, content in documents.items():
            write_whole(beside(self.work.output, name), content.encode())

    def _append_member(self, member: tarfile.TarInfo, source: IO[bytes]) -> None:
        self._file.append(member.tobuf(tarfile.GNU_FORMAT))
        while chunk := source.read(16 << 20):
            self._file.append(chunk)
        self._file.append(bytes(-member.size % _BLOCK))


def _open_tar(path: Path, shown: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:")
    except (tarfile.TarError, EOFError) as error:
        raise CheckpointError(f"{shown}: not a .nemo file, or cut short ({error}); fetch it again") from error
    except OSError as error:
        raise CheckpointError(f"{shown}: cannot be read ({error.strerror or error})") from error


def _members(tar: tarfile.TarFile, shown: Path) -> list[tarfile.TarInfo]:
    try:
        members = tar.getmembers()
    except (tarfile.TarError, EOFError) as error:
        raise CheckpointError(f"{shown}: cut short ({error}); fetch it again") from error
    for member in members:
        path = PurePosixPath(member.name)
        plain = (member.isfile() and not member.issparse()) or member.isdir()
        if path.is_absolute() or ".." in path.parts or not plain:
            raise CheckpointError(
                f"{shown}: refused, its member {member.name!r} is not a plain file inside the archive"
            )
    return members


def _one(members: list[tarfile.TarInfo], name: str, shown: Path) -> tarfile.TarInfo:
    """The member of exactly that file name; larger models carry others that end in it."""
    found = [member for member in members if member.isfile() and PurePosixPath(member.name).name == name]
    if len(found) != 1:
        raise CheckpointError(f"{shown}: {'no' if not found else 'more than one'} {name} inside; is it a .nemo file?")
    return found[0]


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, shown: Path, limit: int) -> bytes:
    source = tar.extractfile(member)
    data = source.read(min(member.size, limit) + 1) if source else b""
    if len(data) != member.size:
        raise CheckpointError(f"{shown}: its member {member.name!r} is damaged or too large")
    return data


def _strings(node: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """All strings of a configuration with their dotted places."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _strings(value, f"{place}.{key}" if place else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _strings(value, f"{place}.{index}")
    elif isinstance(node, str):
        yield place, node


def _digests(config: dict[str, Any], read: Callable[[str], bytes]) -> dict[str, str]:
    """Digests of the tokenizer's files by their places in the configuration, or of the labels."""
    digests = {
        place: hashlib.sha256(read(value.removeprefix("nemo:"))).hexdigest()[:16]
        for place, value in _strings(config)
        if value.startswith("nemo:") and "tokenizer" in place
    }
    for place in ("labels", "decoder.vocabulary", "joint.vocabulary"):
        labels: Any = config
        for key in place.split("."):
            labels = labels.get(key) if isinstance(labels, dict) else None
        if isinstance(labels, list) and not digests:
            digests[place] = hashlib.sha256("\0".join(map(str, labels)).encode()).hexdigest()[:16]
    return digests


def _packed(config: Mapping[str, Any]) -> set[str]:
    """Names of the packed files that a configuration refers to."""
    return {value.removeprefix("nemo:") for _, value in _strings(config) if value.startswith("nemo:")}


def _with_provenance(template: NemoCheckpoint, provenance: Mapping[str, Any]) -> str:
    """The template's configuration, to the letter, with the record of this merge in place of any earlier one."""
    lines, keep = [], True
    for line in template.config_text.splitlines():
        if line and not line[0].isspace() and line[0] not in "-#":  # a key of the top level
            keep = not line.startswith(f"{PROVENANCE_KEY}:")
        if keep:
            lines.append(line)
    record = {PROVENANCE_KEY: dict(provenance)}
    text = "\n".join(lines).rstrip("\n") + "\n" + dump(record)
    wanted = {**template.metadata.config, **record}
    try:
        same = load(text, template.path) == wanted
    except CheckpointError:
        same = False
    return text if same else dump(wanted)  # the other way for a file in YAML's flow style
