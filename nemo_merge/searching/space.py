"""What a search may vary: methods, their parameters, weights of experts, rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from .. import methods
from ..errors import ConfigError, did_you_mean
from ..methods import parameters

if TYPE_CHECKING:
    from optuna import Trial

SETTINGS = ("rules", "then", "batch_norm", "vocabulary")
"""Settings of a merge beside its method that may be varied, each a mapping from names to values or a list of values."""
_RANGE = ("low", "high", "log", "step")


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: Mapping[str, Any]

    def suggest(self, trial: Trial, name: str) -> Any:
        """The value that a trial tries."""
        return self.values[trial.suggest_categorical(name, list(self.values))]


@dataclass(frozen=True)
class Range:
    """A number between two bounds, both included; ``whole`` ones for parameters that are."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    def suggest(self, trial: Trial, name: str) -> Any:
        """The value that a trial tries."""
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return trial.suggest_float(name, self.low, self.high, log=self.log, step=self.step)

    @property
    def values(self) -> Mapping[str, Any]:
        """The bounds, which are checked in place of all numbers between them."""
        return {"low": self.low, "high": self.high}


@dataclass(frozen=True)
class Space:
    """Everything that a search varies.

    Attributes:
        methods: names of merging methods.
        parameters: values by parameter, for every method.
        settings: values by setting of the merge.
        experts: number of experts.
    """

    methods: Sequence[str]
    parameters: Mapping[str, Mapping[str, Choice | Range]]
    settings: Mapping[str, Choice]
    experts: int

    @classmethod
    def read(cls, space: Any, experts: int) -> Space:
        """The space that a configuration describes.

        ``method`` lists methods; ``PARAMETER`` and ``METHOD.PARAMETER`` give a list of values or
        ``{low, high[, log][, step]}``; a range for ``weights`` is one for every expert's weight; ``rules``, ``then``,
        ``batch_norm`` and ``vocabulary`` give lists, or mappings from names to values.

        Raises:
            ConfigError: a method, parameter or setting that does not exist, or a value out of range.
        """
        if not isinstance(space, Mapping) or not space:
            raise ConfigError(
                "search.space: say what to vary, for example {method: [ties, tsvm], scale: {low: 0.5, high: 1.5}}"
            )
        rest = dict(space)
        listed = rest.pop("method", ["boosted_tsvm"])
        names = [listed] if isinstance(listed, str) else list(listed)
        kinds = {name: methods.method_class(name) for name in names}
        if not names:
            raise ConfigError("search.space.method: names no method")
        settings = {key: _choice(rest.pop(key), f"search.space.{key}") for key in SETTINGS if key in rest}
        known = {name: {item.name: item.type for item in parameters(kind)} for name, kind in kinds.items()}
        found: dict[str, dict[str, Choice | Range]] = {name: {} for name in names}
        for key, given in rest.items():
            owner, dot, own = str(key).rpartition(".")
            having = [name for name in names if own in known[name] and owner in ("", name)]
            if not having:
                every = {*SETTINGS, *(item for items in known.values() for item in items)}
                every |= {f"{name}.{item}" for name in names for item in known[name]}
                raise ConfigError(f"search.space: no method here has {key!r}{did_you_mean(str(key), sorted(every))}")
            for name in having:
                if dot or own not in found[name]:
                    found[name][own] = _values(given, f"search.space.{key}", _is_whole(known[name][own]))
        for name in names:
            _check(name, found[name], experts)
        return cls(names, found, settings, experts)

    @property
    def endless(self) -> list[str]:
        """Parameters whose values cannot be listed."""
        return [
            f"{name}.{key}"
            for name, given in self.parameters.items()
            for key, values in given.items()
            if isinstance(values, Range) and not values.whole and values.step is None
        ]

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """What a trial tries: ``{"method": {"name": ..., ...}, "rules": ...}``, the settings of a merge."""
        name = trial.suggest_categorical("method", list(self.methods)) if len(self.methods) > 1 else self.methods[0]
        chosen: dict[str, Any] = {"name": name}
        for key, values in self.parameters[name].items():
            if key == "weights" and isinstance(values, Range):
                chosen[key] = [values.suggest(trial, f"weights.{index}") for index in range(self.experts)]
            else:
                # A parameter of all methods is one variable, so that what is learnt with one method serves the others.
                shared = all(self.parameters[other].get(key) == values for other in self.methods)
                chosen[key] = values.suggest(trial, key if shared else f"{name}.{key}")
        return {"method": chosen, **{key: values.suggest(trial, key) for key, values in self.settings.items()}}


def _choice(given: Any, place: str) -> Choice:
    if isinstance(given, Mapping):
        return Choice({str(name): value for name, value in given.items()})
    if not isinstance(given, list) or not given:
        raise ConfigError(f"{place}: {given!r} is neither a list of values nor a mapping from names to values")
    return Choice({str(value): value for value in given})


def _is_whole(kind: Any) -> bool:
    """Whether a parameter of this type takes whole numbers alone."""
    return {int, float} & {kind, *get_args(kind)} == {int}


def _values(given: Any, place: str, whole: bool) -> Choice | Range:
    if not isinstance(given, Mapping):
        return _choice(given, place)
    for key in given:
        if key not in _RANGE:
            raise ConfigError(f"{place}: a range has no key {key!r}{did_you_mean(str(key), _RANGE)}")
    low: Any = given.get("low")
    high: Any = given.get("high")
    log, step = bool(given.get("log", False)), given.get("step")
    numbers = [low, high] if step is None else [low, high, step]
    if any(isinstance(item, bool) or not isinstance(item, int if whole else (int, float)) for item in numbers):
        wanted = "WHOLE NUMBER" if whole else "NUMBER"
        raise ConfigError(f"{place}: a range is {{low: {wanted}, high: {wanted}}}, not {dict(given)}")
    if not low < high or (log and not low > 0) or (step is not None and (log or not step > 0)):
        raise ConfigError(
            f"{place}: {dict(given)} is no range: low < high, log needs low > 0, and step is positive and without log"
        )
    return Range(low, high, log, step, whole)


def _check(name: str, given: Mapping[str, Choice | Range], experts: int) -> None:
    """Makes the method with every value, which refuses those out of range."""
    for key, values in given.items():
        for value in values.values.values():
            methods.get(name, **{key: [value] * experts if key == "weights" and isinstance(values, Range) else value})
