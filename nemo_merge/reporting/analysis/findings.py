"""What an analysis says in plain language; every sentence has its figure, and every threshold its reason."""

from __future__ import annotations

from collections.abc import Sequence

from ...merging.analysis import Analysis
from .about_experts import angles, dominance, foreign, rounding, twins, unchanged
from .about_parts import drifts, overlaps, places, signs, spectra, statistics
from .finding import Finding

_TESTS = (
    unchanged, foreign, twins, dominance, angles, rounding,
    signs, places, drifts, spectra, overlaps, statistics,
)  # fmt: skip


def findings(analysis: Analysis, names: Sequence[str]) -> list[Finding]:
    """All findings, warnings first.

    Args:
        analysis: what was measured.
        names: what the experts are called, in their order.
    """
    found = [finding for test in _TESTS for finding in test(analysis, names)]
    return sorted(found, key=lambda finding: finding.level != "warning")
