"""Compares the base that a callback is given with the model in training."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..checkpoints import Checkpoint
from ..errors import CheckpointError, PlanError
from ..tensors import Role, role_of
from ._weights import state_of, trained

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

_TABLES = (Role.HEAD, Role.EMBEDDING)
_SHOWN = 5


def check_base(module: LightningModule, base: Checkpoint, names: Sequence[str]) -> None:
    """Compares tensors and tokens.

    Args:
        module: the model in training.
        base: the checkpoint, under the names of the model.
        names: tensors that are to be merged.

    Raises:
        PlanError: with everything that stands against it.
    """
    own = state_of(module)
    problems = []
    missing = [name for name in names if name not in base.specs]
    shapes = [name for name in names if name in base.specs and base.specs[name].shape != tuple(own[name].shape)]
    for found, what in ((missing, "it lacks"), (shapes, "it has another shape of")):
        if found:
            rest = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            problems.append(
                f"{base.path}: {what} {', '.join(map(repr, found[:_SHOWN]))}{rest}, compared with the model in "
                "training; give the model that it was started from, or leave tensors alone with exclude="
            )
    tables = [name for name in names if role_of(name, tuple(own[name].shape), own[name].dtype) in _TABLES]
    if tables and not problems and not _same_tokens(module, base):
        problems.append(
            f"{base.path}: its tokens differ from those of the model in training, or are in another order; leave the "
            f"tensors that depend on them alone: exclude={[re.escape(name) for name in tables]}"
        )
    if not problems:
        broken = [name for name in names if not torch.isfinite(base[name]).all()]
        problems += [f"{base.path}: tensor {name!r} holds values that are NaN or infinite" for name in broken[:_SHOWN]]
    if problems:
        raise PlanError(problems)


def _same_tokens(module: LightningModule, base: Checkpoint) -> bool:
    """Whether both have the same tokens in the same order, as far as they tell."""
    with tempfile.TemporaryDirectory(prefix="nemo_merge-") as folder:
        mine = trained(module, Path(folder), "the model in training")
        if not mine.metadata.tokenizers or not base.metadata.tokenizers:
            return True
        if mine.metadata.tokenizers == base.metadata.tokenizers:
            return True
        try:
            own, theirs = mine.vocabulary(), base.vocabulary()
        except CheckpointError:
            return False
        return own is not None and theirs is not None and own.tokens == theirs.tokens
