"""Error rates, their uncertainty, and what a merge kept.

Names are loaded when they are used first. Nothing here imports torch or NeMo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import attach

if TYPE_CHECKING:
    from .alignment import align as align
    from .code_switching import code_mixing_index as code_mixing_index
    from .code_switching import switch_point_fraction as switch_point_fraction
    from .code_switching import switch_points as switch_points
    from .error_rates import ErrorCounts as ErrorCounts
    from .error_rates import character_error_rate as character_error_rate
    from .error_rates import mixed_error_rate as mixed_error_rate
    from .error_rates import word_error_rate as word_error_rate
    from .matched_pairs import MapssweResult as MapssweResult
    from .matched_pairs import mapsswe as mapsswe
    from .merge_metrics import domain_means as domain_means
    from .merge_metrics import language_retention as language_retention
    from .merge_metrics import normalised_performance as normalised_performance
    from .merge_metrics import set_means as set_means
    from .points_of_interest import pier as pier
    from .retention import backward_gain as backward_gain
    from .retention import forgetting as forgetting
    from .retention import new_domain_drop as new_domain_drop
    from .retention import recovered_forgetting as recovered_forgetting
    from .significance import Interval as Interval
    from .significance import bootstrap_interval as bootstrap_interval
    from .significance import holm as holm
    from .text import normaliser as normaliser
    from .translation import bleu as bleu
    from .translation import chrf as chrf

_HOMES = {
    "ErrorCounts": "error_rates",
    "Interval": "significance",
    "MapssweResult": "matched_pairs",
    "align": "alignment",
    "backward_gain": "retention",
    "bleu": "translation",
    "bootstrap_interval": "significance",
    "character_error_rate": "error_rates",
    "chrf": "translation",
    "code_mixing_index": "code_switching",
    "domain_means": "merge_metrics",
    "forgetting": "retention",
    "holm": "significance",
    "language_retention": "merge_metrics",
    "mapsswe": "matched_pairs",
    "mixed_error_rate": "error_rates",
    "new_domain_drop": "retention",
    "normalised_performance": "merge_metrics",
    "normaliser": "text",
    "pier": "points_of_interest",
    "recovered_forgetting": "retention",
    "set_means": "merge_metrics",
    "switch_point_fraction": "code_switching",
    "switch_points": "code_switching",
    "word_error_rate": "error_rates",
}

__all__ = [*_HOMES]

__getattr__, __dir__ = attach(__name__, _HOMES)
