"""``init_from_merge``: training that starts from a merge, beside NeMo's ``init_from_nemo_model``."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

from ..errors import ConfigError, MergeError, NemoMergeError
from .request import MergeRequest

KEY = "init_from_merge"
_NEMO_KEYS = ("init_from_nemo_model", "init_from_pretrained_model", "init_from_ptl_ckpt")
_SHOWN = 3

logger = logging.getLogger("nemo_merge")


def init_from_merge(
    model: Any,
    config: str | os.PathLike[str] | Mapping[str, Any],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> list[str]:
    """Gives a model the weights of a merge, which is made in memory.

    Example:
        >>> import tempfile, torch
        >>> folder, model = tempfile.mkdtemp(), torch.nn.Linear(2, 1)
        >>> for name, value in {"base": 0.0, "a": 1.0, "b": 3.0}.items():
        ...     torch.save({"weight": torch.full((1, 2), value), "bias": torch.zeros(1)}, f"{folder}/{name}.pt")
        >>> merge = {"base": f"{folder}/base.pt", "experts": [f"{folder}/a.pt", f"{folder}/b.pt"], "method": "soup"}
        >>> init_from_merge(model, merge, include=["weight"]), model.weight.tolist()
        (['weight'], [[2.0, 2.0]])

    Args:
        model: a NeMo model, or any ``torch.nn.Module`` with tensors of the same names.
        config: the settings of ``nemo-merge merge`` as a mapping, or a YAML file with them (relative paths count from
            the file). ``include`` and ``exclude`` may stand among them.
        include: as NeMo's: only tensors are loaded whose name contains one of these; all by default.
        exclude: as NeMo's: tensors whose name contains one of these keep their values.

    Returns:
        The names of the tensors that were loaded. Others keep their values, and the log counts them.

    Raises:
        ConfigError: the configuration is wrong.
        CheckpointError, PlanError: as by :func:`~nemo_merge.merging.merge`.
        MergeError: a tensor has another shape in the merge than in the model, or none fits; the model is unchanged.
    """
    request = MergeRequest.read(config, KEY, parts=True)
    include, exclude = list(include or request.include), list(exclude or request.exclude)
    with request.plan() as merge:
        specs = merge.plan.output_specs
        specs |= {alias: specs[owner] for alias, owner in merge.plan.ties.items() if owner in specs}
        own = model.state_dict()
        loaded = [
            name
            for name in specs
            if name in own
            and any(part in name for part in include or [""])
            and not any(part in name for part in exclude)
        ]
        other = [name for name in loaded if tuple(own[name].shape) != tuple(specs[name].shape)]
        if other:
            shown = ", ".join(f"{name} {tuple(own[name].shape)}, not {specs[name].shape}" for name in other[:_SHOWN])
            raise MergeError(
                f"{request.source}: {len(other)} tensors have other shapes in the model than in the merge ({shown}); "
                "leave them as they are (exclude: [decoder]), or train a model of the merge's size"
            )
        if not loaded:
            chosen = f" with include={include} and exclude={exclude}" if include or exclude else ""
            raise MergeError(f"{request.source}: no tensor of the merge is one of the model's{chosen}")
        weights = merge.state_dict()
        model.load_state_dict({name: weights[name] for name in loaded}, strict=False)
        logger.info("%s: %d of the model's %d tensors come from the merge", request.source, len(loaded), len(own))
        if hasattr(model, "cfg"):
            from .provenance import note_start

            note_start(model, KEY, merge.record, include=include, exclude=exclude)
    return loaded


def install() -> Callable[[], None]:
    """Makes ``maybe_init_from_pretrained_checkpoint`` understand ``init_from_merge``; the result undoes it.

    Scripts of NeMo call that method with their whole configuration. The key works beside NeMo's own, and models that
    start from a merged ``.nemo`` by ``init_from_nemo_model`` say so in their configuration.
    """
    from lightning.pytorch.utilities import rank_zero_only
    from nemo.core.classes import ModelPT
    from nemo.lightning.callback_group import CallbackGroup

    original = ModelPT.maybe_init_from_pretrained_checkpoint
    active = True

    @wraps(original)
    @rank_zero_only  # as the original: data parallel training sends the weights of the first process to all
    def initialise(self: Any, cfg: Any, map_location: str = "cpu") -> None:
        if not active or cfg.get(KEY) is None:
            sources = _merged_sources(cfg) if active else []
            original(self, cfg, map_location)
            for source in sources:
                _note(self, source)
            return
        if others := [key for key in _NEMO_KEYS if cfg.get(key) is not None]:
            raise ConfigError(f"{KEY} and {', '.join(others)} both say where weights come from; keep one")
        events = CallbackGroup.get_instance()
        events.on_load_checkpoint_start()
        init_from_merge(self, cfg[KEY])
        events.on_load_checkpoint_end()

    ModelPT.maybe_init_from_pretrained_checkpoint = initialise

    def undo() -> None:
        nonlocal active
        active = False  # also where another program has wrapped this method since
        if ModelPT.maybe_init_from_pretrained_checkpoint is initialise:
            ModelPT.maybe_init_from_pretrained_checkpoint = original

    return undo


def _merged_sources(cfg: Any) -> list[dict[str, Any]]:
    """The files of ``init_from_nemo_model`` that say that they are merges, as arguments of :func:`note_start`.

    NeMo removes ``include`` and ``exclude`` from the configuration when it reads them, so this comes before.
    """
    from ..checkpoints import open_checkpoint

    wanted = cfg.get(_NEMO_KEYS[0])
    entries = [{"path": wanted}] if isinstance(wanted, str) else wanted.values() if hasattr(wanted, "values") else []
    sources = []
    for entry in entries:
        if not isinstance(entry.get("path"), str):
            continue  # NeMo will say what is wrong
        try:
            with open_checkpoint(entry["path"]) as checkpoint:
                record = checkpoint.metadata.provenance
        except NemoMergeError as error:
            logger.warning("%s: whether it is a merge cannot be told (%s)", entry["path"], error)
            continue
        if record is not None:
            parts = {key: list(entry.get(key) or ()) for key in ("include", "exclude")}
            sources.append({"record": record, "path": str(entry["path"]), **parts})
    return sources


def _note(model: Any, source: Mapping[str, Any]) -> None:
    from .provenance import note_start

    note_start(model, _NEMO_KEYS[0], **source)
