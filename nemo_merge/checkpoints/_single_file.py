"""The writer of every format that is one file with all tensors in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ._checkpoint import Writer, beside, check_outputs
from ._pending import Layout
from ._work import WorkFolder, key_of, write_whole


class SingleFileWriter(Writer):
    """Writes a file that is laid out already; documents go beside it.

    Args:
        output: the file.
        layout: where everything goes.
        record: provenance of the tensors.
        overwrite: allow an output that exists to be replaced.
        checksums: where the CRC-32 of every tensor belongs, for formats that hold a zip archive.
    """

    def __init__(
        self,
        output: Path,
        layout: Layout,
        record: Mapping[str, Any],
        *,
        overwrite: bool,
        checksums: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> None:
        check_outputs(output, overwrite)
        self._checksums = checksums
        self.work: WorkFolder = WorkFolder(output, key_of(record))
        try:
            self._file = self.work.add(output.name, layout, checksums=bool(checksums))
        except BaseException:
            self.discard()
            raise

    def write(self, name: str, start: int, values: Tensor) -> None:
        self._file.write(name, start, values)

    def commit(self, documents: Mapping[str, str] = MappingProxyType({})) -> None:
        for name, places in self._checksums.items():
            for place in places:
                self._file.put(place, self._file.checksums[name].to_bytes(4, "little"))
        self._append()
        self.work.publish_file(self._file.path.name)
        for name, content in documents.items():
            write_whole(beside(self.work.output, name), content.encode())

    def _append(self) -> None:
        """Adds what comes behind the layout; by default nothing."""
