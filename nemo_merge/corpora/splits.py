"""Splits for corpora that have none."""

from __future__ import annotations

import hashlib


def split_of(text: str) -> str:
    """Which split a sentence belongs to: decided by the sentence itself, so that no sentence is in two splits.

    Returns:
        ``train`` (70 %), ``dev`` (10 %) or ``test`` (20 %).
    """
    bucket = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10
    return "train" if bucket < 7 else "dev" if bucket == 7 else "test"
