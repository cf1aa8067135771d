"""Error rates and their uncertainty."""

from __future__ import annotations

from .error_rates import ErrorCounts, character_error_rate, word_error_rate
from .significance import Interval, bootstrap_interval

__all__ = ["ErrorCounts", "Interval", "bootstrap_interval", "character_error_rate", "word_error_rate"]
