"""NVIDIA NeMo's ``.nemo``: a tar (sometimes gzipped) of configuration, weights and tokenizer files."""

from __future__ import annotations

import contextlib
import copy
import gzip
import hashlib
import io
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ..errors import CheckpointError
from ..vocabulary import Vocabulary
from ._checkpoint import Checkpoint, Metadata, TensorSpec, Writer
from ._nemo_config import CONFIG, MAX_CONFIG, WEIGHTS, nemo_metadata, packed_files, with_record
from ._nemo_vocabulary import Changes, grow_vocabulary, read_vocabulary
from ._pending import Layout, Slot, explained
from ._single_file import SingleFileWriter
from ._stored import StoredCheckpoint, plain_state_dict
from ._torch_layout import checksum_places, lay_out
from ._torch_zip import TorchZip
from ._yaml import changed_config

_GZIP_MAGIC = b"\x1f\x8b"
_MAX_ARTEFACT = 256 << 20
_MAX_MEMBERS = 10_000
_MAX_RATIO = 100  # weights hardly compress; the zeros of a fresh model do, but few of its tensors are zeros
_ALWAYS_ALLOWED = 64 << 20
_BLOCK = tarfile.BLOCKSIZE
_TAR_ERRORS = (tarfile.TarError, EOFError, ValueError, ArithmeticError, LookupError, RecursionError)
"""What tarfile raises for damaged headers: its own errors, and those of the numbers that do not fit."""


class NemoCheckpoint(StoredCheckpoint):
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
                self.config_text = _read_member(tar, config, self.path, MAX_CONFIG).decode("utf-8", "replace")
                self._zip = TorchZip(self._tar_path, weights.offset_data, weights.size, f"{self.path} ({WEIGHTS})")
                self.metadata = self._read_metadata(tar)
            self._take(plain_state_dict(self._zip.content, f"{self.path}: {WEIGHTS}"))
        except BaseException:
            self.close()
            raise

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
        wanted = packed_files(config)
        lost = packed_files(self.metadata.config) - wanted
        other = copy.copy(self)
        other._unpacked = None  # belongs to this checkpoint
        other._added = {name: data for name, data in {**self._added, **changes.artefacts}.items() if name in wanted}
        other._others = [
            member for member in self._others if PurePosixPath(member.name).name not in lost | other._added.keys()
        ]
        other.config_text = text
        other.metadata = nemo_metadata(
            text, str(self.path), lambda name: hashlib.sha256(other.artefact(name)).hexdigest()
        )
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
                    _unpack(packed, unpacked, self.path)
                except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                    raise CheckpointError(f"{self.path}: damaged or cut short ({error}); fetch it again") from error
            return plain
        except OSError as error:
            self.close()
            raise CheckpointError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        except BaseException:
            self.close()
            raise

    def _read_metadata(self, tar: tarfile.TarFile) -> Metadata:
        artefacts = {PurePosixPath(member.name).name: member for member in self._others}

        def digest(name: str) -> str | None:
            if name not in artefacts:
                return None
            content = _read_member(tar, artefacts[name], self.path, _MAX_ARTEFACT)
            return hashlib.sha256(content).hexdigest()

        return nemo_metadata(self.config_text, str(self.path), digest)


class NemoWriter(SingleFileWriter):
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
        self._template = template
        self._record = record
        ties = {alias: owner for alias, owner in template.ties.items() if owner in specs}
        zipped = lay_out(specs, ties, getattr(template._zip.content, "attributes", {}))
        info = copy.copy(template._weights)
        info.size = zipped.size
        header = info.tobuf(tarfile.GNU_FORMAT)
        shift = len(header)
        layout = Layout(
            size=shift + -(-zipped.size // _BLOCK) * _BLOCK,
            constants={0: header, **{offset + shift: data for offset, data in zipped.constants.items()}},
            slots={name: Slot(slot.offset + shift, slot.nbytes) for name, slot in zipped.slots.items()},
        )
        places = {name: [place + shift for place in found] for name, found in checksum_places(zipped).items()}
        super().__init__(output, layout, record, overwrite=overwrite, checksums=places)

    def _append(self) -> None:
        config = copy.copy(self._template._config)
        text = with_record(
            self._template.config_text, self._template.metadata.config, self._record, str(self._template.path)
        ).encode()
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

    def _append_member(self, member: tarfile.TarInfo, source: IO[bytes]) -> None:
        self._file.append(member.tobuf(tarfile.GNU_FORMAT))
        while chunk := source.read(16 << 20):
            self._file.append(chunk)
        self._file.append(bytes(-member.size % _BLOCK))


def _unpack(packed: gzip.GzipFile, unpacked: IO[bytes], shown: Path) -> None:
    limit = _MAX_RATIO * shown.stat().st_size + _ALWAYS_ALLOWED
    size = 0
    while chunk := packed.read(4 << 20):
        size += len(chunk)
        if size > limit:
            raise CheckpointError(
                f"{shown}: refused, it unpacks to more than {_MAX_RATIO} times its size, which no model does"
            )
        unpacked.write(chunk)


class _Bounded(io.FileIO):
    """A file that refuses to be read in huge pieces, as the headers of a hostile tar can ask for."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_ARTEFACT:
            raise tarfile.ReadError("a header asks for too much")
        try:
            return self._read(min(size, max(0, os.fstat(self.fileno()).st_size - self.tell())))
        except OSError as error:
            raise CheckpointError(f"{self.name}: cannot be read ({error.strerror or error})") from error

    def _read(self, size: int) -> bytes:
        return super().read(size) or b""


@contextlib.contextmanager
def _open_tar(path: Path, shown: Path) -> Iterator[tarfile.TarFile]:
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(_Bounded(path))
            tar = stack.enter_context(tarfile.open(fileobj=file, mode="r:"))
        except OSError as error:
            raise CheckpointError(f"{shown}: cannot be read ({error.strerror or error})") from error
        except _TAR_ERRORS as error:
            raise CheckpointError(f"{shown}: not a .nemo file, or cut short ({error}); fetch it again") from error
        yield tar


def _members(tar: tarfile.TarFile, shown: Path) -> list[tarfile.TarInfo]:
    members: list[tarfile.TarInfo] = []
    try:
        for member in tar:
            members.append(member)
            if len(members) > _MAX_MEMBERS:
                raise CheckpointError(f"{shown}: refused, it holds more than {_MAX_MEMBERS} members")
    except _TAR_ERRORS as error:
        raise CheckpointError(f"{shown}: cut short ({error}); fetch it again") from error
    for member in members:
        path = PurePosixPath(member.name)
        plain = (member.isfile() and not member.issparse()) or member.isdir()
        if path.is_absolute() or ".." in path.parts or not plain or member.size < 0:
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
    try:
        source = tar.extractfile(member)
        data = source.read(min(member.size, limit) + 1) if source else b""
    except _TAR_ERRORS as error:
        raise CheckpointError(f"{shown}: its member {member.name!r} is damaged ({error}); fetch it again") from error
    if len(data) != member.size:
        raise CheckpointError(f"{shown}: its member {member.name!r} is damaged or too large")
    return data
