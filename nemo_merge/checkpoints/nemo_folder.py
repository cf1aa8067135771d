"""An unpacked ``.nemo``: a folder with configuration, weights and tokenizer files, which NeMo restores as well."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ..vocabulary import Vocabulary
from ._checkpoint import CARD, RECORD, TensorSpec, Writer
from ._nemo_config import CONFIG, MAX_CONFIG, WEIGHTS, nemo_metadata, with_record
from ._nemo_vocabulary import read_vocabulary
from ._stored import StoredCheckpoint, plain_state_dict
from ._torch_layout import checksum_places, lay_out
from ._torch_zip import TorchZip
from ._work import WorkFolder, check_output, key_of


class NemoFolderCheckpoint(StoredCheckpoint):
    """A folder as ``save_to`` leaves it with ``pack_nemo_file=False``, or as ``tar x`` makes it of a ``.nemo``.

    Raises:
        CheckpointError: weights or configuration are damaged, or an artefact is missing.
    """

    format = "nemo folder"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        config = self.path / CONFIG
        try:
            if config.stat().st_size > MAX_CONFIG:
                raise CheckpointError(f"{config}: too large to be a configuration")
            self.config_text = config.read_text(encoding="utf-8", errors="replace")
            self.metadata = nemo_metadata(self.config_text, str(self.path), self._digest)
            self._zip = TorchZip(self.path / WEIGHTS)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        self._take(plain_state_dict(self._zip.content, str(self.path / WEIGHTS)))

    @property
    def files(self) -> list[Path]:
        return [self.path / WEIGHTS]

    def writer(
        self, output: Path, specs: Mapping[str, TensorSpec], record: Mapping[str, Any], *, overwrite: bool = False
    ) -> Writer:
        return NemoFolderWriter(self, output, specs, record, overwrite=overwrite)

    def vocabulary(self) -> Vocabulary | None:
        return read_vocabulary(self)

    def artefact(self, name: str) -> bytes:
        if Path(name).name != name or not (self.path / name).is_file():
            raise CheckpointError(f"{self.path}: its configuration names nemo:{name}, which is not in the folder")
        return (self.path / name).read_bytes()

    def _digest(self, name: str) -> str | None:
        path = self.path / name
        if Path(name).name != name or not path.is_file():
            return None
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class NemoFolderWriter(Writer):
    """Writes a folder like ``template`` with other weights; the record becomes ``nemo_merge`` in the configuration."""

    def __init__(
        self,
        template: NemoFolderCheckpoint,
        output: Path,
        specs: Mapping[str, TensorSpec],
        record: Mapping[str, Any],
        *,
        overwrite: bool,
    ) -> None:
        check_output(output, overwrite)
        self._template, self._record = template, record
        ties = {alias: owner for alias, owner in template.ties.items() if owner in specs}
        layout = lay_out(specs, ties, getattr(template._zip.content, "attributes", {}))
        self._checksums = checksum_places(layout)
        self.work: WorkFolder = WorkFolder(output, key_of(record))
        try:
            self._file = self.work.add(WEIGHTS, layout, checksums=True)
        except BaseException:
            self.discard()
            raise

    def write(self, name: str, start: int, values: Tensor) -> None:
        self._file.write(name, start, values)

    def commit(self, documents: Mapping[str, str] = MappingProxyType({})) -> None:
        for name, places in self._checksums.items():
            for place in places:
                self._file.put(place, self._file.checksums[name].to_bytes(4, "little"))
        template = self._template
        small: dict[str, bytes | Path] = {
            path.name: path
            for path in sorted(template.path.iterdir())
            if path.is_file() and path.name not in (WEIGHTS, CARD, RECORD)
        }
        text = with_record(template.config_text, template.metadata.config, self._record, str(template.path))
        small[CONFIG] = text.encode()
        small.update({name: content.encode() for name, content in documents.items()})
        self.work.publish_folder(small)
