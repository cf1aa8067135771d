"""``KEY=VALUE`` arguments as options of a Python function."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ConfigError, did_you_mean


def read_options(arguments: Iterable[str], known: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Reads options; a value has the type of the default, text where there is none.

    Args:
        arguments: ``KEY=VALUE``.
        known: defaults by name.
        owner: what messages call the function.

    Raises:
        ConfigError: an argument is of another form, or a key or value does not fit.
    """
    options: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise ConfigError(f"{argument!r} is not of the form KEY=VALUE")
        if key not in known:
            hint = did_you_mean(key, known) if known else "; it has none"
            raise ConfigError(f"{owner} has no option {key!r}{hint}")
        options[key] = _value(key, text, known[key])
    return options


def _value(key: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{key}={text!r} is neither true nor false")
        return text.lower() == "true"
    if isinstance(default, tuple):
        return tuple(item.strip() for item in text.strip("[]").split(",") if item.strip())
    if isinstance(default, int) and default is not inspect.Parameter.empty:
        try:
            return int(text)
        except ValueError as error:
            raise ConfigError(f"{key}={text!r} is not a whole number") from error
    return text
