"""Settings of the regularisers, and how they join a job."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, did_you_mean
from .jobs import Report
from .sources import SourceLike

if TYPE_CHECKING:
    from torch import Tensor

    from .fine_tune import FineTuningJob

_REDUCTIONS = ("per_factor_mean", "global_mean", "elbo", "sum")


@dataclass(frozen=True)
class L2Settings:
    """Settings of ``l2``.

    Attributes:
        gamma: strength, the same for every factor; or derived from a Bayesian adapter's settings by the others.
        beta: weight of the divergence.
        prior_scale: standard deviation of the prior.
        kl_reduction: how the divergence is reduced.
        tokens: for ``elbo``.
    """

    gamma: float | None = None
    beta: float | None = None
    prior_scale: float = 0.01
    kl_reduction: str = "per_factor_mean"
    tokens: float | None = None

    def __post_init__(self) -> None:
        if (self.gamma is None) == (self.beta is None):
            raise ConfigError("regulariser l2: give either gamma, or beta and prior_scale of a Bayesian adapter")
        _check(self, "gamma", "beta", "prior_scale", "tokens")
        if self.kl_reduction not in _REDUCTIONS:
            raise ConfigError(
                f"regulariser l2: kl_reduction={self.kl_reduction!r}{did_you_mean(self.kl_reduction, _REDUCTIONS)}"
            )
        if self.beta is not None and self.kl_reduction == "elbo" and self.tokens is None:
            raise ConfigError("regulariser l2: the reduction 'elbo' needs the number of tokens in the training data")

    def gammas(self, sizes: Sequence[int]) -> list[float]:
        """Strength for every factor, given the numbers of their entries.

        ``beta / sigma_p^2`` divided by what the reduction divides the divergence by.
        """
        if self.gamma is not None:
            return [self.gamma] * len(sizes)
        assert self.beta is not None
        divisors: Sequence[float] = {
            "per_factor_mean": sizes,
            "global_mean": [sum(sizes)] * len(sizes),
            "elbo": [self.tokens or 1] * len(sizes),
            "sum": [1] * len(sizes),
        }[self.kl_reduction]
        return [self.beta / (self.prior_scale**2 * divisor) for divisor in divisors]


@dataclass(frozen=True)
class L2SPSettings:
    """Settings of ``l2_sp``.

    Attributes:
        gamma: strength.
    """

    gamma: float

    def __post_init__(self) -> None:
        _check(self, "gamma")


@dataclass(frozen=True)
class EWCSettings:
    """Settings of ``ewc``.

    Attributes:
        gamma: strength; the Fisher information of a good model is small, so this is large, 1e2 and more.
        fisher: ``.safetensors`` file with the information; read if it exists, and otherwise estimated and written.
        source: data like that of the base, to estimate from: labelled, or audio alone.
        utterances: how many of it to take.
        labels: ``reference`` transcripts, or ``pseudo``: what the base itself hears.
    """

    gamma: float
    fisher: str | Path
    source: SourceLike | None = None
    utterances: int = 200
    labels: str = "reference"

    def __post_init__(self) -> None:
        _check(self, "gamma", "utterances")
        if self.labels not in ("reference", "pseudo"):
            raise ConfigError(
                f"regulariser ewc: labels={self.labels!r}{did_you_mean(self.labels, ('reference', 'pseudo'))}"
            )
        if Path(self.fisher).suffix != ".safetensors":
            raise ConfigError(f"regulariser ewc: fisher={self.fisher} does not end in .safetensors")


_SETTINGS: dict[str, type] = {"l2": L2Settings, "l2_sp": L2SPSettings, "ewc": EWCSettings}


def read_regulariser(values: Mapping[str, Any]) -> L2Settings | L2SPSettings | EWCSettings:
    """Settings of a regulariser from plain data.

    Raises:
        ConfigError: an unknown name or key, a key that is missing, or a value out of its range.
    """
    given = dict(values)
    name = given.pop("name", None)
    if name not in _SETTINGS:
        raise ConfigError(f"regulariser: name={name!r}{did_you_mean(str(name), _SETTINGS)}")
    known = [item.name for item in fields(_SETTINGS[name])]
    for key in given:
        if key not in known:
            raise ConfigError(f"regulariser {name}: there is no setting {key!r}{did_you_mean(str(key), known)}")
    try:
        return _SETTINGS[name](**given)
    except TypeError as error:
        raise ConfigError(f"regulariser {name}: {str(error).partition('()')[2].strip() or error}") from error


def base_fisher(job: FineTuningJob, model: Any, report: Report) -> dict[str, Tensor] | None:
    """Fisher information of the base, where a job needs it; to be called before the model has an adapter."""
    settings = None if job.regulariser is None else read_regulariser(job.regulariser)
    if not isinstance(settings, EWCSettings):
        return None
    from .fisher import fisher_of

    return fisher_of(settings, job.base, model, report)


def add_regulariser(job: FineTuningJob, model: Any, fisher: Mapping[str, Tensor] | None) -> None:
    """Adds the term that a job asks for to a model's loss; what is to be trained must be marked by then."""
    from .. import adapters
    from .regularisers import EWC, L2, L2SP

    if job.regulariser is None:
        return
    settings = read_regulariser(job.regulariser)
    term: L2 | L2SP | EWC
    if isinstance(settings, L2Settings):
        term = L2(settings.gammas)
    elif isinstance(settings, L2SPSettings):
        term = L2SP(settings.gamma, model)
    else:
        assert fisher is not None
        term = EWC(settings.gamma, fisher, model)
    adapters.add_loss_term(model, job.regulariser["name"], term)


def _check(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        positive = name in ("prior_scale", "tokens", "utterances")
        if value is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < 0 or (positive and value == 0):
            raise ConfigError(f"regulariser: {name}={value!r} is not a number {'above' if positive else 'from'} 0")
