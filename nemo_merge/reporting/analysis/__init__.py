"""Says in tables, pictures and sentences why a merge works or not, from weights alone."""

from __future__ import annotations

from .finding import Finding
from .report import AnalysisReport, analyze

__all__ = ["AnalysisReport", "Finding", "analyze"]
