"""One page in HTML about an experiment: what was merged, how well it recognises, and where it errs."""

from __future__ import annotations

from .report import ReportOptions, write_page

__all__ = ["ReportOptions", "write_page"]
