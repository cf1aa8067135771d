"""What NeMo, Lightning and Lhotse see of this package: callbacks, restoring, starting weights, data types.

Nothing heavy is imported here; the names below are loaded when they are used first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import attach

if TYPE_CHECKING:
    from .callbacks_file import callbacks_from_config as callbacks_from_config
    from .checkpoint_merge_callback import CheckpointMergeCallback as CheckpointMergeCallback
    from .connector import MergeConnector as MergeConnector
    from .continual_merge_callback import ContinualMergeCallback as ContinualMergeCallback
    from .data_types import domain_cuts as domain_cuts
    from .initialisation import init_from_merge as init_from_merge
    from .merge_callback import MergeCallback as MergeCallback
    from .provenance_callback import ProvenanceCallback as ProvenanceCallback
    from .registration import register as register
    from .registration import unregister as unregister

_HOMES = {
    "CheckpointMergeCallback": "checkpoint_merge_callback",
    "ContinualMergeCallback": "continual_merge_callback",
    "MergeCallback": "merge_callback",
    "MergeConnector": "connector",
    "ProvenanceCallback": "provenance_callback",
    "callbacks_from_config": "callbacks_file",
    "domain_cuts": "data_types",
    "init_from_merge": "initialisation",
    "register": "registration",
    "unregister": "registration",
}

__all__ = list(_HOMES)

__getattr__, __dir__ = attach(__name__, _HOMES)
