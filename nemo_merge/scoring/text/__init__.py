"""Text profiles: what is done to references and hypotheses before they are compared."""

from __future__ import annotations

from .profiles import PROFILES, check_profile, normaliser

__all__ = ["PROFILES", "check_profile", "normaliser"]
