"""A merge whose weights stay in memory: what a program needs that goes on with the merged model at once."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoints import container_for, open_checkpoint, writer_for
from ..checkpoints.memory import StateDictWriter
from ..errors import CheckpointError, ConfigError, OutputError
from ..methods import Method
from ..methods.emr import Emr
from .api import Options, merge_variants, rounding_warnings
from .engine import execute
from .inputs import Source, check_unchanged, fingerprints, open_inputs
from .plan import plan_variants
from .provenance import hashing, record

logger = logging.getLogger("nemo_merge")


class InMemoryMerge(ExitStack):
    """A planned merge of files; a context manager that closes them.

    Making it reads headers, checks the inputs against each other and plans; :meth:`state_dict` computes.

    Memory is one copy of the model beside what :func:`~nemo_merge.merging.merge` needs; nothing is written, except for
    ``batch_norm="recalibrate"``, which runs the merged model through NeMo in a process of its own and so merges into
    the folder for temporary files.

    Args:
        base: the model that the experts were fine-tuned from; None for methods that need none.
        experts: the fine-tuned models.
        method: merging method.
        options: as for files; those that concern the output have no effect.

    Attributes:
        plan: what is decided about every tensor.
        record: the record of the merge, the same as a merged file carries.

    Raises:
        CheckpointError, PlanError, ConfigError: as by :func:`~nemo_merge.merging.merge`.
    """

    def __init__(self, base: Source | None, experts: Sequence[Source], method: Method, options: Options) -> None:
        super().__init__()
        if isinstance(method, Emr):
            raise ConfigError("emr leaves a package beside its output; merge files, and restore the result")
        self._sources, self._options = (base, experts), options
        try:
            opened, experts_opened = open_inputs(base, experts, self)
            inputs = [*experts_opened, *([opened] if opened is not None else [])]
            self._check_unchanged = partial(check_unchanged, inputs, fingerprints(inputs))
            with hashing(inputs) as digests:
                self.plan = plan_variants(opened, experts_opened, [method], options)[0]
                self.record: dict[str, Any] = record(self.plan, digests())
        except BaseException:
            self.close()
            raise

    def state_dict(self) -> dict[str, Tensor]:
        """The merged weights on the CPU, tied names included; they are valid as long as the merge is open.

        Raises:
            MergeError: a result is not finite, or statistics cannot be estimated.
            CheckpointError: an input changed while it was read.
        """
        if self.plan.audio is not None:
            return self._through_file()
        writer = StateDictWriter(self.plan.template, self.plan.output_specs)
        execution = execute(self.plan, writer, workers=self._options.workers)
        self._check_unchanged()
        writer.commit()
        for warning in (*self.plan.warnings, *rounding_warnings(execution)):
            logger.warning(warning)
        return writer.state_dict

    def _through_file(self) -> dict[str, Tensor]:
        folder = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="nemo_merge-")))
        merge_variants(*self._sources, {folder / "merged.nemo": self.plan.method}, self._options)
        return dict(self.enter_context(open_checkpoint(folder / "merged.nemo")))

    def write_without_weights(self, output: Path) -> None:
        """Writes the ``.nemo`` that this merge would be, with configuration, tokenizer and record but no tensor.

        Raises:
            CheckpointError: no input is a ``.nemo`` file with the same tensors.
            OutputError: it cannot be written.
        """
        template, experts = self.plan.template, self.plan.experts
        try:
            container_for(getattr(template, "own", template), experts, output)
        except OutputError as error:
            raise CheckpointError(
                f"{template.path}: NeMo restores .nemo files, and neither this ({template.format}) nor another input "
                "with the same tensors is one, which would give configuration and tokenizer"
            ) from error
        with writer_for(template, experts, output, {}, self.record) as writer:
            writer.commit()
