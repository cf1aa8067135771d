"""Several speech encoders behind one interface: their hidden layers become one stream of features.

Nothing heavy is imported here; the names below are loaded when they are used first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import attach

if TYPE_CHECKING:
    from .hconv import CHConv as CHConv
    from .hconv import HConv as HConv
    from .interfaces import ClsPooling as ClsPooling
    from .interfaces import ConcatProjection as ConcatProjection
    from .interfaces import GroupedWeightedSum as GroupedWeightedSum
    from .interfaces import GumbelSelection as GumbelSelection
    from .interfaces import WeightedSum as WeightedSum
    from .layer_interface import LayerInterface as LayerInterface
    from .upstream_fusion import UpstreamFusion as UpstreamFusion

_HOMES = {
    "CHConv": "hconv",
    "ClsPooling": "interfaces",
    "ConcatProjection": "interfaces",
    "GroupedWeightedSum": "interfaces",
    "GumbelSelection": "interfaces",
    "HConv": "hconv",
    "LayerInterface": "layer_interface",
    "UpstreamFusion": "upstream_fusion",
    "WeightedSum": "interfaces",
}

__all__ = list(_HOMES)

__getattr__, __dir__ = attach(__name__, _HOMES)
