"""Restores a NeMo model that is merged while it is loaded.

The weights are merged straight into memory: stock NeMo unpacks a ``.nemo`` into a temporary folder before it reads it,
and a merged file would have to be written there first. All that is written is a ``.nemo`` without weights, because NeMo
takes tokenizers from the file that a model was restored from, at the latest when the model is saved again. It also
carries the configuration of the merge: a larger vocabulary, and the record of where the weights come from.
"""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from nemo.utils import AppState

from ..errors import ConfigError
from .provenance import set_record
from .request import YAML_SUFFIXES, MergeRequest

if TYPE_CHECKING:
    from torch import Tensor

    from ..merging.in_memory import InMemoryMerge
    from ..methods import Method

_KEPT = ExitStack()
"""Folders of the files without weights; they last as long as the process, as copies of the models may."""
atexit.register(_KEPT.close)


class MergeConnector(SaveRestoreConnector):
    """Makes ``restore_from`` merge.

    With the configuration of a merge in the place of a model (the settings of ``nemo-merge merge``, relative paths
    counting from the file), or with a base in that place and the rest here::

        ASRModel.restore_from("merge.yaml", save_restore_connector=MergeConnector())
        ASRModel.restore_from("base.nemo", save_restore_connector=MergeConnector(["a.nemo", "b.nemo"], "ties"))

    ``override_config_path``, ``map_location``, ``strict``, ``return_config`` and ``trainer`` mean what they mean to
    NeMo. The model's configuration has the record of the merge under ``nemo_merge``, which ``save_to`` keeps.

    Args:
        experts: the experts, as :func:`~nemo_merge.merging.merge` takes them; None when a file is to say it all.
        method: name of a merging method, or a method.
        base: for clarity; it must be the file that is restored.
        **settings: options (``rules``, ``then``, ``batch_norm``, ``audio``, ``vocabulary``, ``dtype``, ``device``,
            ``workers``) and parameters of the method.

    Raises:
        ConfigError: a setting that does not exist.
    """

    def __init__(
        self,
        experts: Sequence[Any] | None = None,
        method: str | Method = "boosted_tsvm",
        *,
        base: str | os.PathLike[str] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if experts is None and (settings or base is not None or method != "boosted_tsvm"):
            raise ConfigError("MergeConnector: experts are missing; without them, all settings belong into a YAML file")
        self._base = Path(base) if base is not None else None
        self._request = MergeRequest.of(experts, method, settings, "MergeConnector") if experts is not None else None
        self._merge: InMemoryMerge | None = None

    def restore_from(
        self,
        calling_cls: type,
        restore_path: str,
        override_config_path: Any = None,
        map_location: Any = None,
        strict: bool = True,
        return_config: bool = False,
        trainer: Any = None,
        validate_access_integrity: bool = True,
    ) -> Any:
        """Plans the merge, and restores a model whose weights it computes; see NeMo for the arguments.

        Raises:
            ConfigError: the file and the settings of this connector do not go together.
            CheckpointError, PlanError, MergeError: as by :func:`~nemo_merge.merging.merge`.
        """
        with self._request_for(Path(restore_path)).plan() as merge, ExitStack() as folders:
            hollow = Path(folders.enter_context(tempfile.TemporaryDirectory(prefix="nemo_merge-")), "merged.nemo")
            merge.write_without_weights(hollow)
            if not return_config:
                AppState().model_restore_path = str(hollow)  # ModelPT has put the path of the user there
            self._merge = merge
            try:
                restored = super().restore_from(
                    calling_cls,
                    str(hollow),
                    override_config_path,
                    map_location,
                    strict,
                    return_config,
                    trainer,
                    validate_access_integrity,
                )
            finally:
                self._merge = None
            if return_config:
                return restored
            set_record(restored, merge.record)  # also where another configuration overrides the merge's
            _KEPT.push(folders.pop_all())
        return restored

    def modify_state_dict(self, conf: Any, state_dict: Mapping[str, Tensor]) -> Any:
        """The merged weights in the place of none."""
        return super().modify_state_dict(conf, state_dict if self._merge is None else self._merge.state_dict())

    def _request_for(self, path: Path) -> MergeRequest:
        if self.model_extracted_dir is not None:
            raise ConfigError(f"{path}: MergeConnector restores .nemo files, not unpacked folders")
        if path.suffix.lower() in YAML_SUFFIXES:
            if self._request is not None:
                raise ConfigError(f"{path}: says what to merge, but so does the MergeConnector; leave one out")
            return MergeRequest.read(path, str(path))
        if self._request is None:
            raise ConfigError(
                f"{path}: nothing says what to merge it with; pass MergeConnector(experts=[...]) or a YAML"
            )
        if self._base is not None and not (self._base.exists() and self._base.samefile(path)):
            raise ConfigError(f"{path}: is restored, but the MergeConnector has base={self._base}; they must be one")
        return self._request.with_base(path)
