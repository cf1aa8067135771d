"""Options of the form ``KEY=VALUE``."""

from __future__ import annotations

from collections.abc import Sequence

import click


def pairs(items: Sequence[str], option: str) -> dict[str, str]:
    """Values by key, of options such as ``--expert GROUP=NAME``."""
    found: dict[str, str] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not (key and equals and value):
            raise click.UsageError(f"{option} {item}: expected KEY=NAME")
        found[key] = value
    return found


def by_language(items: Sequence[str], option: str) -> dict[str, str]:
    """Values by language; the one without a language is for all others."""
    chosen: dict[str, str] = {}
    for item in items:
        language, _, value = item.rpartition("=")
        if language in chosen:
            whose = f"for {language}" if language else "for all languages"
            raise click.UsageError(f"{option} is given twice {whose}: {chosen[language]} and {value}")
        chosen[language] = value
    return chosen
