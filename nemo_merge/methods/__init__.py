"""Merging methods, one per module; each module registers the method it defines."""

from __future__ import annotations

import importlib
import pkgutil

from ._blocks import Block, Blocks, CoreVectors, TaskVectors
from ._method import Method, SpectralMethod, TaskVectorMethod
from ._parameters import Parameter, parameter, parameters
from ._post import Place, PostProcessor
from ._registry import get, get_post, method_class, names, post_class, post_names, register
from ._span import Gram, SpanMethod
from ._sparse import SparseMethod

__all__ = [
    "Block",
    "Blocks",
    "CoreVectors",
    "Gram",
    "Method",
    "Parameter",
    "Place",
    "PostProcessor",
    "SpanMethod",
    "SparseMethod",
    "SpectralMethod",
    "TaskVectorMethod",
    "TaskVectors",
    "get",
    "get_post",
    "method_class",
    "names",
    "parameter",
    "parameters",
    "post_class",
    "post_names",
    "register",
]

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")
