"""What a model's configuration says of merges that its weights come from, under the key ``nemo_merge``.

A merged model has the record of its merge there. Once it is trained, its weights are no longer what the record
describes; the key then says what training started from, and how far it went:

.. code-block:: yaml

    nemo_merge:
      nemo_merge: 0.1.0
      started_from:
        - {how: init_from_merge, include: [encoder], merged_from: {method: ..., base: ..., experts: ...}}
      training:
        - {from_step: 0, to_step: 500, nemo: 3.0.0}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from .. import __version__

RECORD_KEY = "nemo_merge"


def record_of(model: Any) -> dict[str, Any] | None:
    """What the configuration says under ``nemo_merge``, as plain data; None where it says nothing."""
    config = getattr(model, "cfg", None)
    found = config.get(RECORD_KEY) if isinstance(config, DictConfig) else None
    if not isinstance(found, DictConfig):
        return None
    plain: Any = OmegaConf.to_container(found)
    return plain


def set_record(model: Any, record: Mapping[str, Any]) -> None:
    """Puts a record into the configuration of a model, from where NeMo saves it."""
    with open_dict(model.cfg):
        model.cfg[RECORD_KEY] = dict(record)


def note_start(
    model: Any,
    how: str,
    record: Mapping[str, Any],
    *,
    path: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> None:
    """Notes a merge, or a model trained from one, that weights were taken from.

    Args:
        model: the model that has the weights now.
        how: the way they came: ``restore_from``, ``init_from_merge``, ``init_from_nemo_model``.
        record: of the merge; names of tensors with a treatment of their own are left out.
        path: the file, where there is one.
        include: parts of names that tensors had to have, if not all were taken.
        exclude: parts of names of tensors that were not taken.
    """
    entry: dict[str, Any] = {
        "how": how,
        **({"path": path} if path is not None else {}),
        **({"include": list(include)} if include else {}),
        **({"exclude": list(exclude)} if exclude else {}),
        "merged_from": {key: value for key, value in record.items() if key != "decisions"},
    }
    known = _history(model)
    known["started_from"].append(entry)
    set_record(model, known)


def note_training(model: Any, *, from_step: int, to_step: int, more: Mapping[str, Any], new: bool) -> None:
    """Notes how far training has gone, if the model comes from a merge; does nothing otherwise.

    Args:
        model: the model.
        from_step: optimiser steps before this training.
        to_step: optimiser steps so far.
        more: what else to note.
        new: this training starts; otherwise the last entry is brought up to date.
    """
    if record_of(model) is None:
        return
    known = _history(model)
    if not new and known["training"]:
        known["training"].pop()
    known["training"].append({"from_step": from_step, "to_step": to_step, **more})
    set_record(model, known)


def _history(model: Any) -> dict[str, Any]:
    """The record as one of a model in training: that of a merge becomes what it was started from."""
    found = record_of(model)
    if found is None or "started_from" in found:
        known = found or {}
        return {
            RECORD_KEY: __version__,
            "started_from": known.get("started_from", []),
            "training": known.get("training", []),
        }
    whole = {key: value for key, value in found.items() if key != "decisions"}
    return {RECORD_KEY: __version__, "started_from": [{"how": "restore_from", "merged_from": whole}], "training": []}
