"""Rules: other settings for the tensors that a regular expression or the name of a part picks out."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import methods
from ..errors import ConfigError, did_you_mean
from ..methods import Method
from ..tensors import GROUPS, Depth, Role, groups_of

BASE = "base"
"""As the method of a rule: leave these tensors as they are in the base."""

_KEYS = ("match", "group", "method", "scale", "weights")

Weight = float | tuple[float, ...]


@dataclass(frozen=True)
class Rule:
    """What is done with the tensors that it matches; the first rule that matches a tensor decides.

    Attributes:
        label: how messages call it.
        match: regular expression searched for in the tensor's name, or None.
        group: part of the model (``nemo_merge.tensors.GROUPS``), or None.
        method: the method with its parameters, or None to leave the tensors at the base.
        weights: per expert a number, or values along the depth of the stack, from first to last block, between which
            is interpolated; None for the method's own weights.
    """

    label: str
    match: re.Pattern[str] | None
    group: str | None
    method: Method | None
    weights: tuple[Weight, ...] | None = None

    def matches(self, name: str, role: Role) -> bool:
        """Whether the tensor is meant."""
        named = self.match is None or self.match.search(name) is not None
        return named and (self.group is None or self.group in groups_of(name, role))

    def method_at(self, name: str, role: Role, depth: Depth | None) -> Method | None:
        """The method for one tensor, with the weights that apply at its depth."""
        if self.method is None or self.weights is None:
            return self.method
        position = depth.position if depth else float(bool(groups_of(name, role) & {"head", "joint"}))
        return dataclasses.replace(self.method, weights=tuple(_at(weight, position) for weight in self.weights))

    @property
    def ramped(self) -> bool:
        """Whether a weight changes with depth."""
        return any(isinstance(weight, tuple) for weight in self.weights or ())


def parse_rules(values: Sequence[Rule | Mapping[str, Any]], main: Method, experts: int) -> list[Rule]:
    """Rules from plain data, as YAML and the command line give them.

    Each has ``match`` (a regular expression) or ``group`` or both, and any of ``method`` (a name, a mapping with
    ``name`` and parameters, or ``base``), ``scale`` and ``weights``; what a rule does not say is as in the main method.

    Raises:
        ConfigError: a key, group or method that does not exist, a bad regular expression, a value out of range.
    """
    if isinstance(values, (str, Mapping)):
        raise ConfigError("rules must be a list of mappings such as {match: 'encoder\\..*', scale: 0.5}")
    return [
        value if isinstance(value, Rule) else _parse(index, value, main, experts)
        for index, value in enumerate(values, 1)
    ]


def _parse(index: int, value: Any, main: Method, experts: int) -> Rule:
    label = f"rule {index}"
    if not isinstance(value, Mapping):
        raise ConfigError(f"{label}: {value!r} is not a mapping such as {{match: 'encoder\\..*', scale: 0.5}}")
    for key in value:
        if key not in _KEYS:
            raise ConfigError(f"{label}: there is no key {key!r}{did_you_mean(str(key), _KEYS)}")
    pattern, group = value.get("match"), value.get("group")
    if pattern is None and group is None:
        raise ConfigError(f"{label}: says neither match (a regular expression) nor group ({', '.join(GROUPS)})")
    if group is not None and group not in GROUPS:
        raise ConfigError(f"{label}: there is no group {group!r}{did_you_mean(str(group), GROUPS)}")
    try:
        compiled = re.compile(pattern) if pattern is not None else None
    except (re.error, TypeError) as error:
        raise ConfigError(f"{label}: match={pattern!r} is not a regular expression ({error})") from error
    label += f" ({', '.join(f'{key}={value[key]}' for key in ('match', 'group') if key in value)})"
    if value.get("method") == BASE:
        if value.get("scale") is not None or value.get("weights") is not None:
            raise ConfigError(f"{label}: method=base leaves tensors as they are; it takes neither scale nor weights")
        return Rule(label, compiled, group, None)
    method = _method(label, value.get("method"), main)
    weights = _weights(label, value.get("weights"), experts)
    if value.get("scale") is not None:
        method = dataclasses.replace(method, scale=value["scale"])
    rule = Rule(label, compiled, group, method, weights)
    if rule.ramped and method.whole_model:
        raise ConfigError(f"{label}: weights along the depth and scope=model exclude each other")
    return rule


def _method(label: str, value: Any, main: Method) -> Method:
    if value is None:
        return main
    values = {"name": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{label}: method={value!r} is neither a name nor a mapping with a name")
    try:
        return methods.get(name, **values)
    except ConfigError as error:
        raise ConfigError(f"{label}: {error}") from error


def _weights(label: str, value: Any, experts: int) -> tuple[Weight, ...] | None:
    if value is None:
        return None
    if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence) or len(value) != experts:
        raise ConfigError(f"{label}: weights={value!r} is not a list with one entry for each of the {experts} experts")
    weights: list[Weight] = []
    for weight in value:
        values = weight if isinstance(weight, Sequence) and not isinstance(weight, str) else [weight]
        if not values or not all(
            isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
            for number in values
        ):
            raise ConfigError(f"{label}: the weight {weight!r} is neither a number nor a list of numbers")
        weights.append(tuple(map(float, values)) if values is weight else float(weight))
    return tuple(weights)


def _at(weight: Weight, position: float) -> float:
    """A weight along the depth, linear between its values."""
    if isinstance(weight, float):
        return weight
    place = position * (len(weight) - 1)
    left = min(int(place), len(weight) - 1)
    right = min(left + 1, len(weight) - 1)
    return weight[left] + (place - left) * (weight[right] - weight[left])
