"""Imports a library that an extra brings, or says how to install it."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import ConfigError


def library(module: str, purpose: str, package: str = "'nemo-merge[score]'") -> Any:
    """A module that is imported when it is needed.

    Raises:
        ConfigError: it is not installed; the message says what it is for and how to get it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        root = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != root:
            raise
        raise ConfigError(f"{purpose} needs {root}, which is not installed: pip install {package}") from error
