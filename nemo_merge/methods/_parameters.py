"""Parameters of methods: declared once in the dataclass, read by Python, command line, YAML and documentation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..errors import ConfigError, did_you_mean


def parameter(
    default: Any,
    description: str,
    *,
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
) -> Any:
    """A field of a method that users set: declared once, read by Python, command line, YAML and documentation.

    Args:
        default: default value.
        description: one sentence, with units.
        low: least value of a number.
        high: greatest value of a number.
        low_open: whether ``low`` itself is out of range.
    """
    return field(default=default, metadata={"description": description, "low": low, "high": high, "low_open": low_open})


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method as the documentation shows it."""

    name: str
    default: Any
    description: str
    type: Any
    low: float | None = None
    high: float | None = None
    low_open: bool = False

    @property
    def range(self) -> str:
        """For example ``0 < x <= 1`` or ``tensor | model``."""
        choices = _choices(self.type)
        if choices:
            return " | ".join(map(str, choices))
        left = "" if self.low is None else f"{self.low:g} {'<' if self.low_open else '<='} "
        right = "" if self.high is None else f" <= {self.high:g}"
        return f"{left}x{right}" if left or right else ""

    def check(self, value: Any, owner: str) -> None:
        """Raises :class:`ConfigError` if the value has the wrong type or is out of range."""
        place = f"{owner}: {self.name}={value!r}"
        if value is None:
            if type(None) in get_args(self.type):
                return
            raise ConfigError(f"{place} may not be empty")
        choices = _choices(self.type)
        if choices:
            if value not in choices:
                raise ConfigError(f"{place} is not one of {', '.join(map(str, choices))}{_suggest(value, choices)}")
            return
        wanted = {int, float, bool} & {self.type, *get_args(self.type)}
        if wanted:
            kinds = (int, float) if float in wanted else tuple(wanted)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in wanted):
                raise ConfigError(f"{place} is not {' or '.join(sorted(kind.__name__ for kind in wanted))}")
        if self.low is not None and not (value > self.low or (value == self.low and not self.low_open)):
            raise ConfigError(f"{place} is out of range: {self.range}")
        if self.high is not None and not value <= self.high:
            raise ConfigError(f"{place} is out of range: {self.range}")


def parameters(cls: type) -> list[Parameter]:
    """The parameters of a method, its own first, then those that every method has (``scale`` and ``weights``)."""
    hints = get_type_hints(cls)
    common = ("conv_as_matrix", "scale", "weights")
    own = [item for item in fields(cls) if item.name not in common]
    shared = sorted((item for item in fields(cls) if item.name in common), key=lambda item: common.index(item.name))
    return [
        Parameter(
            name=item.name,
            default=None if item.default is MISSING else item.default,
            description=item.metadata["description"],
            type=hints[item.name],
            low=item.metadata["low"],
            high=item.metadata["high"],
            low_open=item.metadata["low_open"],
        )
        for item in (*own, *shared)
    ]


def _choices(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    return ()


def _suggest(value: Any, choices: Iterable[Any]) -> str:
    return did_you_mean(value, map(str, choices)) if isinstance(value, str) else ""
