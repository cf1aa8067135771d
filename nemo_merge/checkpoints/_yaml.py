"""YAML from strangers: plain data only, and no small file that unfolds into a large one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import CheckpointError

_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MAX_NODES = 1 << 22
_MAX_WRITTEN = 1 << 18  # values written out in a document; a configuration has hundreds, a large vocabulary 16 thousand
_MAX_DEPTH = 100
_MAX_NUMBER = 400  # letters
_MAX_MERGED = 1 << 12  # entries that "<<" copies into one mapping
_MERGE, _SCALARS = "tag:yaml.org,2002:merge", ("int", "float", "timestamp")


class _Loader(_BASE):
    """Refuses what takes very long although the document is small."""

    def flatten_mapping(self, node: Any) -> None:
        merged = 0
        for key, value in node.value:
            if key.tag == _MERGE:
                for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if isinstance(part, yaml.MappingNode):
                        self.flatten_mapping(part)
                        merged += len(part.value)
        if merged > _MAX_MERGED:  # merges of merges multiply
            raise ValueError("it merges thousands of entries")
        super().flatten_mapping(node)

    def short_scalar(self, node: Any) -> Any:
        if len(node.value) > _MAX_NUMBER:  # 1:00:00:... is a number to YAML, of any size
            raise ValueError("a number has hundreds of digits")
        return _BASE.yaml_constructors[node.tag](self, node)


for _name in _SCALARS:
    _Loader.add_constructor(f"tag:yaml.org,2002:{_name}", _Loader.short_scalar)


def load(text: str, shown: str | Path) -> dict[str, Any]:
    """Reads a mapping.

    Args:
        text: the document.
        shown: what messages call it.

    Raises:
        CheckpointError: not valid YAML, not a mapping, or it refers to itself or repeats parts without end.
    """
    try:
        _check_size(text)
        content = yaml.load(text, Loader=_Loader)
        unfolded_size(content)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError, ArithmeticError, KeyError) as error:
        raise CheckpointError(f"{shown}: not valid YAML ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{shown}: not a mapping")
    return content


def _check_size(text: str) -> None:
    """Goes through the document without building anything: the C library crashes when it builds deep ones."""
    depth = 0
    for written, event in enumerate(yaml.parse(text, Loader=_BASE)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        if written > _MAX_WRITTEN:
            raise ValueError("it has hundreds of thousands of values")


def dump(content: Mapping[str, Any]) -> str:
    """Writes a mapping in the order of its keys."""
    return yaml.safe_dump(dict(content), allow_unicode=True, sort_keys=False, width=120)


def changed_config(text: str, changes: Mapping[tuple[str, ...], Any], shown: str | Path) -> tuple[dict[str, Any], str]:
    """A model configuration with other values at some places, as data and as text.

    The text is read and written in OmegaConf's dialect, as NeMo does: 1e-05 is a number there, and interpolations stay.

    Raises:
        CheckpointError: not valid, or a place lies inside a value.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    load(text, shown)  # refuses what unfolds without end
    try:
        config = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (OmegaConfBaseException, yaml.YAMLError, RecursionError) as error:
        raise CheckpointError(f"{shown}: not a valid configuration ({error})") from error
    for place, value in changes.items():
        node: Any = config
        for key in place[:-1]:
            node = node.get(key) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise CheckpointError(f"{shown}: {'.'.join(place)} cannot be set, it lies inside a value")
        node[place[-1]] = value
    written = OmegaConf.to_yaml(OmegaConf.create(config))
    return load(written, shown), written


def unfolded_size(node: Any, sizes: dict[int, int] | None = None) -> int:
    """Number of nodes with every alias written out.

    Raises:
        ValueError: a part contains itself, or there are millions.
    """
    sizes = {} if sizes is None else sizes
    if not isinstance(node, (dict, list, tuple)):
        return 1
    if id(node) in sizes:
        if sizes[id(node)] == 0:
            raise ValueError("a part contains itself")
        return sizes[id(node)]
    sizes[id(node)] = 0  # being counted
    children = node.values() if isinstance(node, dict) else node
    total = 1 + sum(unfolded_size(child, sizes) for child in children)
    if total > _MAX_NODES:
        raise ValueError("it unfolds into millions of values")
    sizes[id(node)] = total
    return total
