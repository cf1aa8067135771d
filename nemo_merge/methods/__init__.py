"""Merging methods, one per module; each module registers the method it defines."""

from __future__ import annotations

import importlib
import pkgutil

from ._blocks import Block, Blocks, TaskVectors
from ._method import Method, SpectralMethod, TaskVectorMethod, WeightMethod
from ._parameters import Parameter, parameter, parameters
from ._registry import get, method_class, names, register

__all__ = [
    "Block",
    "Blocks",
    "Method",
    "Parameter",
    "SpectralMethod",
    "TaskVectorMethod",
    "TaskVectors",
    "WeightMethod",
    "get",
    "method_class",
    "names",
    "parameter",
    "parameters",
    "register",
]

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")
