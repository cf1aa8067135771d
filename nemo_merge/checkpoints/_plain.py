"""Looks into what a pickle gave: every object once, and configurations as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ._pickle import MAX_INSTRUCTIONS, PLAIN_KEYS, Global, Inert, Known, TorchDict


def children(node: Any) -> Iterator[Any]:
    """What a node of unpickled data refers to."""
    if isinstance(node, Mapping):
        yield from node.keys()
        yield from node.values()
        if isinstance(node, TorchDict):
            yield node.attributes
    elif type(node) in (list, tuple, set, frozenset):
        yield from node
    elif isinstance(node, Inert):
        yield from (node.args, node.kwargs)
        for step, value in node.steps:
            yield from (part for pair in value for part in pair) if step == "setitems" else (value,)


def walk(root: Any) -> Iterator[tuple[Any, int]]:
    """Every node once, with its depth, without recursion."""
    seen: set[int] = set()
    waiting = [(root, 0)]
    while waiting:
        node, depth = waiting.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node, depth
            waiting.extend((child, depth + 1) for child in children(node) if not isinstance(child, PLAIN_KEYS))


def unfolds(root: Any, limit: int = 2 * MAX_INSTRUCTIONS) -> bool:
    """Whether it has more nodes than ``limit`` when whatever is shared is counted each time that it is met.

    A small pickle can hold a list that holds a list twice, that holds a list twice, and so on; to go through all of it
    takes for ever. Nodes within themselves are not followed.
    """
    sizes: dict[int, int] = {}
    waiting = [(root, False)]
    while waiting:
        node, entered = waiting.pop()
        if entered:
            sizes[id(node)] = size = 1 + sum(sizes.get(id(child), 1) for child in children(node))
            if size > limit:
                return True
        elif id(node) not in sizes:
            sizes[id(node)] = 0
            waiting.append((node, True))
            waiting.extend((child, False) for child in children(node) if not isinstance(child, PLAIN_KEYS))
    return False


def plain(node: Any, depth: int = 60, memo: dict[int, Any] | None = None) -> Any:
    """Configuration objects as plain dictionaries, lists and values.

    OmegaConf's containers, namespaces and other objects with a state become dictionaries; what has no plain form
    becomes the name of its class in angle brackets. Objects that contain themselves are cut.
    """
    memo = {} if memo is None else memo
    if isinstance(node, PLAIN_KEYS):
        return node
    if id(node) in memo:
        return memo[id(node)]
    if depth == 0:
        return "<nested too deeply>"
    memo[id(node)] = "<itself>"

    def inner(value: Any) -> Any:
        return plain(value, depth - 1, memo)

    def entries(mapping: Mapping[Any, Any]) -> dict[Any, Any]:
        return {key if isinstance(key, PLAIN_KEYS) else str(inner(key)): inner(value) for key, value in mapping.items()}

    result: Any
    if isinstance(node, Mapping):
        result = entries(node)
    elif type(node) in (list, tuple, set, frozenset):
        result = [inner(value) for value in node]
    elif isinstance(node, Inert):
        state = node.state
        if node.path.startswith("omegaconf.") and isinstance(state, Mapping):
            result = inner(state["_content"] if "_content" in state else state.get("_val"))
        elif node.path.startswith("pathlib") and all(isinstance(part, str) for part in node.args):
            result = "/".join(node.args).replace("//", "/")
        elif node.items:
            result = entries(node.items)
        elif node.members:
            result = [inner(value) for value in node.members]
        elif isinstance(state, Mapping):
            result = entries(state)
        else:
            result = f"<{node.path}>"
    elif isinstance(node, (Global, Known)):
        result = f"<{node.path}>"
    else:
        result = f"<{type(node).__name__}>" if isinstance(node, tuple) else str(node)
    memo[id(node)] = result
    return result
