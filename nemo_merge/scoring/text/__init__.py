"""Text profiles: what is done to references and hypotheses before they are compared."""

from __future__ import annotations

from .profiles import PROFILES, normaliser

__all__ = ["PROFILES", "normaliser"]
