"""Several speech encoders behind one interface: their hidden layers become one stream of features.

Nothing heavy is imported here; the names below are loaded when they are used first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import attach

if TYPE_CHECKING:
    from .cache import cache_features as cache_features
    from .choice import compare_upstreams as compare_upstreams
    from .fused_preprocessor import FusedUpstreamPreprocessor as FusedUpstreamPreprocessor
    from .hconv import CHConv as CHConv
    from .hconv import HConv as HConv
    from .interfaces import ClsPooling as ClsPooling
    from .interfaces import ConcatProjection as ConcatProjection
    from .interfaces import GroupedWeightedSum as GroupedWeightedSum
    from .interfaces import GumbelSelection as GumbelSelection
    from .interfaces import WeightedSum as WeightedSum
    from .layer_interface import LayerInterface as LayerInterface
    from .upstream import Upstream as Upstream
    from .upstream import UpstreamOptions as UpstreamOptions
    from .upstream_fusion import UpstreamFusion as UpstreamFusion

_HOMES = {
    "CHConv": "hconv",
    "ClsPooling": "interfaces",
    "ConcatProjection": "interfaces",
    "GroupedWeightedSum": "interfaces",
    "FusedUpstreamPreprocessor": "fused_preprocessor",
    "GumbelSelection": "interfaces",
    "HConv": "hconv",
    "LayerInterface": "layer_interface",
    "Upstream": "upstream",
    "cache_features": "cache",
    "compare_upstreams": "choice",
    "UpstreamFusion": "upstream_fusion",
    "UpstreamOptions": "upstream",
    "WeightedSum": "interfaces",
}

__all__ = list(_HOMES)

__getattr__, __dir__ = attach(__name__, _HOMES)
