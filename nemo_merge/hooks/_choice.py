"""Which of two models is kept: by a metric of validation, a margin, and limits on other metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from ..errors import ConfigError, did_you_mean

Metrics = Mapping[str, float]
Keep = Literal["better", "merged", "both"]
Rule = Callable[[Metrics, Metrics], bool]
Mode = Literal["min", "max"]


@dataclass(frozen=True)
class Choice:
    """How a merged model is compared with the one that was trained.

    Attributes:
        keep: ``better`` keeps one of them, ``merged`` always the merged one, ``both`` both; or a function that is given
            the metrics of the merged and of the trained model and says whether the merged one is kept.
        monitor: the metric that decides; a mapping from metrics to weights for their weighted sum; None to validate
            nothing.
        mode: whether the metric is to be small (``min``) or large (``max``).
        min_delta: by how much the merged model must be better; negative where it may be a little worse.
        limits: by how much the merged model may be worse than the trained one in other metrics, for example
            ``{"general_val_wer": 0.005}``.
    """

    keep: Keep | Rule = "better"
    monitor: str | Mapping[str, float] | None = "val_wer"
    mode: Mode = "min"
    min_delta: float = 0.0
    limits: Metrics = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not callable(self.keep) and self.keep not in get_args(Keep):
            raise ConfigError(f"keep={self.keep!r} does not exist{did_you_mean(str(self.keep), get_args(Keep))}")
        if self.mode not in get_args(Mode):
            raise ConfigError(f"mode={self.mode!r} does not exist; known: min, max")
        if self.monitor is None and (callable(self.keep) or self.keep == "better"):
            raise ConfigError("keep=better compares a metric; name it with monitor=, or keep=merged")
        if self.monitor is not None and not self.terms:
            raise ConfigError("monitor={} names no metric")
        for what, values in (("monitor", self.terms), ("limits", self.limits), ("min_delta", {"": self.min_delta})):
            for name, value in values.items():
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                    raise ConfigError(f"{what}{f' of {name}' if name else ''}={value!r} is not a finite number")

    @property
    def terms(self) -> Mapping[str, float]:
        """Weight of every metric that the score sums up."""
        if self.monitor is None:
            return {}
        return {self.monitor: 1.0} if isinstance(self.monitor, str) else self.monitor

    def check(self, logged: Iterable[str]) -> None:
        """Refuses metrics that validation does not give.

        Raises:
            ConfigError: naming those that it does give.
        """
        logged = set(logged)
        for name in (*self.terms, *self.limits):
            if name not in logged:
                raise ConfigError(
                    f"validation gives no metric {name!r}, which monitor= or limits= names{did_you_mean(name, logged)}"
                )

    def score(self, metrics: Metrics) -> float:
        """The number that decides; NaN counts as the worst there is."""
        total = sum(weight * metrics[name] for name, weight in self.terms.items())
        worst = math.inf if self.mode == "min" else -math.inf
        return worst if math.isnan(total) else total

    def improves(self, new: float, old: float | None) -> bool:
        """Whether a score is better than another one, or the first."""
        return old is None or (new < old if self.mode == "min" else new > old)

    def takes_merged(self, merged: Metrics, trained: Metrics) -> bool:
        """Whether the merged model is kept rather than the trained one."""
        if callable(self.keep):
            return bool(self.keep(merged, trained))
        if self.keep != "better":
            return True
        sign = 1.0 if self.mode == "min" else -1.0
        if any(not sign * (merged[name] - trained[name]) <= limit for name, limit in self.limits.items()):
            return False
        new, old = self.score(merged), self.score(trained)
        if math.isinf(new):
            return False
        return sign * new <= sign * old - self.min_delta
