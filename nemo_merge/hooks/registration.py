"""``nemo_merge.register()``: what is put into NeMo while a program runs, and taken out again."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

from ..errors import ConfigError

_PARTS = ("data_types", "initialisation", "provenance_callback", "fused_models")
"""Modules with a function ``install`` that returns what undoes it."""
_undo: list[Callable[[], None]] = []


def register() -> None:
    """Makes NeMo know this package, in this process: data type, starting weights, provenance.

    - ``input_cfg`` has the type ``nemo_merge_domain``, see :mod:`nemo_merge.hooks.data_types`;
    - ``model.maybe_init_from_pretrained_checkpoint(cfg)`` understands ``init_from_merge``, see
      :func:`nemo_merge.hooks.init_from_merge`;
    - models that come from a merge say so after training, see :class:`nemo_merge.hooks.ProvenanceCallback`;

    - configurations may name ``nemo_merge.fusion.FusedUpstreamPreprocessor``, the only class that is added to NeMo's
      list of those it allows: merged models are of NeMo's own classes.

    Registering twice changes nothing; :func:`unregister` takes everything back. It is never done by an import.

    Raises:
        ConfigError: NeMo is not installed.
    """
    if _undo:
        return
    if find_spec("nemo") is None:
        raise ConfigError("nemo_merge.register() needs NeMo, which is not installed; pip install 'nemo-merge[nemo]'")
    try:
        for part in _PARTS:
            _undo.append(import_module(f".{part}", __package__).install())
    except BaseException:
        unregister()
        raise


def unregister() -> None:
    """Takes back what :func:`register` did; does nothing without it."""
    while _undo:
        _undo.pop()()


def register_if_installed() -> None:
    """Registers where there is a NeMo: callbacks work with plain Lightning too."""
    if find_spec("nemo") is not None:
        register()
