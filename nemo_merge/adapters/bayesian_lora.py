r"""Bayesian LoRA: a Gaussian posterior over the factors of an adapter, trained against a prior around no change.

Bayesian Low-Rank Factorization for Robust Model Adaptation (Ugan, Pham and Waibel, ICASSP 2026, arXiv 2510.18723).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..errors import ConfigError, did_you_mean
from .attachment import attachment_of
from .estimators import ESTIMATORS
from .kl import REDUCTIONS, SCHEDULES, KlTerm
from .loss_terms import add_loss_term

_STARTS = (True, False, "gaussian")


@dataclass(frozen=True)
class BayesianLoraConfig:
    """Settings of a Bayesian adapter.

    Attributes:
        r: rank.
        lora_alpha: the change is ``lora_alpha / r * B A``.
        lora_dropout: share of the adapter's inputs that are dropped in training.
        target_modules: a regular expression for whole names of linear layers, or a list of their ends; by default
            :func:`~nemo_merge.adapters.default_targets`.
        use_rslora: scale by ``lora_alpha / sqrt(r)`` instead.
        rank_pattern, alpha_pattern: ranks and alphas of single modules, as in PEFT.
        init_lora_weights: how the means start: True (A uniform, B zero), ``"gaussian"`` or False (both random).
        prior_scale: standard deviation of the prior over every entry of A and B.
        rho_init: the spreads start uniformly between these; ``sigma = softplus(rho)``, so -5.5 and -4.5 stand for 0.004
            and 0.011.
        sigma_b: ``"deterministic"``, B is a point with the prior's penalty on it; a number, the standard deviation that
            B's entries start with; or ``"same"``, B starts like A, which makes the adapted model noisy from the start.
        a_only: B is an ordinary factor without any prior (as in BLoB, arXiv 2406.11675).
        estimator: how outputs are drawn in training: ``"flipout"``, ``"flipout_utterance"`` (signs of noise are shared
            by the frames of an utterance), ``"lrt"`` or ``"direct"``.
        beta: weight of the divergence in the loss.
        beta_schedule: ``"constant"``, or ``"linear"`` or ``"cosine"`` from 0 to ``beta`` over ``beta_warmup_steps``.
        beta_warmup_steps: in optimiser steps.
        kl_reduction: see :func:`~nemo_merge.adapters.kl_divergence`.
        tokens: size of the training data, for ``kl_reduction="elbo"``.
        rho_learning_rate: learning rate of the spreads, if not that of the means.

    Raises:
        ConfigError: a value that makes no sense.
    """

    r: int = 32
    lora_alpha: float = 64
    lora_dropout: float = 0.05
    target_modules: str | Sequence[str] | None = None
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    init_lora_weights: bool | str = True
    prior_scale: float = 0.01
    rho_init: tuple[float, float] = (-5.5, -4.5)
    sigma_b: str | float = "deterministic"
    a_only: bool = False
    estimator: str = "flipout"
    beta: float = 0.5
    beta_schedule: str = "constant"
    beta_warmup_steps: int = 0
    kl_reduction: str = "per_factor_mean"
    tokens: float | None = None
    rho_learning_rate: float | None = None

    def __post_init__(self) -> None:
        for key, known in (("estimator", ESTIMATORS), ("beta_schedule", SCHEDULES), ("kl_reduction", REDUCTIONS)):
            if (value := getattr(self, key)) not in known:
                raise ConfigError(f"{key}={value!r}{did_you_mean(str(value), known)}")
        if self.init_lora_weights not in _STARTS:
            raise ConfigError(
                f"init_lora_weights={self.init_lora_weights!r}: the prior is centred at no change of the base, so the "
                "factors must start without what such a start takes from the base; use True, False or 'gaussian'"
            )
        if not isinstance(self.r, int) or isinstance(self.r, bool) or self.r < 1:
            raise ConfigError(f"r={self.r!r} is not a whole number of 1 or more")
        if not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"lora_dropout={self.lora_dropout!r} is not between 0 and 1")
        for key in ("beta", "beta_warmup_steps"):
            if not _number(value := getattr(self, key)) or value < 0:
                raise ConfigError(f"{key}={value!r} is not a number of 0 or more")
        for key in ("lora_alpha", "prior_scale", "tokens", "rho_learning_rate"):
            value = getattr(self, key)
            if value is not None and (not _number(value) or value <= 0):
                raise ConfigError(f"{key}={value!r} is not a number above 0")
        if self.beta_schedule != "constant" and self.beta_warmup_steps < 1:
            raise ConfigError(f"beta_schedule={self.beta_schedule!r} needs beta_warmup_steps of 1 or more")
        if self.kl_reduction == "elbo" and self.tokens is None:
            raise ConfigError(
                "kl_reduction='elbo' divides the divergence by the size of the training data; set tokens= to its "
                "number of target tokens, or of utterances where the loss is a mean over utterances"
            )
        rho = self.rho_init
        if len(rho) != 2 or not all(map(_number, rho)) or rho[0] > rho[1]:
            raise ConfigError(f"rho_init={rho!r} is not a pair of numbers (low, high)")
        object.__setattr__(self, "rho_init", (float(rho[0]), float(rho[1])))
        if not (self.sigma_b in ("deterministic", "same") or (_number(self.sigma_b) and float(self.sigma_b) > 0)):
            raise ConfigError(f"sigma_b={self.sigma_b!r} is not 'deterministic', 'same' or a number above 0")


def inject_bayesian_lora(
    model: nn.Module,
    config: BayesianLoraConfig | None = None,
    adapter_name: str = "default",
    *,
    nemo_file: str = "merge",
    still_batch_norm: bool = True,
    objective: bool = True,
) -> list[str]:
    """Injects Bayesian LoRA into a model and freezes everything else.

    As with :func:`~nemo_merge.adapters.inject_lora`, a NeMo model then trains with a stock ``trainer.fit(model)``: the
    divergence joins its loss, and the spreads have a parameter group without weight decay. Weights are drawn in
    training only; validation and decoding use the means.

    Args:
        model: the whole model; it is changed in place.
        config: settings.
        adapter_name: a model can have several; the new one becomes the active one.
        nemo_file: what ``save_to`` writes, as for :func:`~nemo_merge.adapters.inject_lora`.
        still_batch_norm: likewise.
        objective: whether ``beta KL`` joins the loss where the model is a LightningModule. In a loop of your own, add
            ``beta * kl_divergence(model)`` to it.

    Returns:
        Names of the adapted modules.

    Raises:
        ConfigError: a bad option, targets that select nothing, or a name that is taken. The model is as it was.
    """
    from peft import LoraConfig

    from .targets import default_targets

    config = config or BayesianLoraConfig()
    targets = config.target_modules if config.target_modules is not None else default_targets(model)
    lora = LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=config.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=config.use_rslora,
        rank_pattern=dict(config.rank_pattern),
        alpha_pattern=dict(config.alpha_pattern),
        init_lora_weights=config.init_lora_weights,  # type: ignore[arg-type]
        bias="none",
    )
    return inject_posterior(model, lora, config, adapter_name, nemo_file, still_batch_norm, objective)


def inject_posterior(
    model: nn.Module,
    lora: Any,
    config: BayesianLoraConfig,
    adapter_name: str,
    nemo_file: str,
    still_batch_norm: bool,
    objective: bool,
) -> list[str]:
    """As :func:`inject_bayesian_lora`, from a complete ``peft.LoraConfig`` beside the posterior's settings."""
    from .bayesian_layer import NEW_POSTERIOR, BayesianLinear
    from .lora import inject, remove_adapter
    from .targets import find_targets, split_plain

    plain, others = split_plain(model, find_targets(model, lora))
    if not plain:
        raise ConfigError(
            f"target_modules={lora.target_modules!r} selects no plain linear layer, only {', '.join(others)}"
        )
    if others:
        warnings.warn(f"no Bayesian adapter for {', '.join(others)}: not plain linear layers", stacklevel=3)
        lora.exclude_modules = others
    lora._register_custom_module({nn.Linear: BayesianLinear})
    token = NEW_POSTERIOR.set(config)
    try:
        names = inject(model, lora, adapter_name, nemo_file, still_batch_norm)
    finally:
        NEW_POSTERIOR.reset(token)
    # PEFT's hook for own layers is not public: make sure that no version trains plain LoRA in silence.
    for name in names:
        if adapter_name not in getattr(model.get_submodule(name), "lora_rho_A", {}):
            remove_adapter(model, adapter_name)
            raise ConfigError(
                f"{name} got no posterior: it has plain adapters already, which a Bayesian one cannot join "
                "(remove_adapter() them first), or this version of PEFT is not supported"
            )
    if objective and callable(getattr(model, "training_step", None)):
        attachment = attachment_of(model)
        assert attachment is not None
        term = KlTerm(config, adapter_name)
        try:
            attachment.terms[adapter_name] = add_loss_term(model, term.name, term)
        except ConfigError:
            remove_adapter(model, adapter_name)
            raise
    return names


@contextmanager
def sampling(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Within it, Bayesian adapters draw weights in training (``True``, as usual) or use their means (``False``).

    In evaluation they use their means in any case.
    """
    from .bayesian_layer import bayesian_layers

    before = {layer: layer.sampling for _, layer in bayesian_layers(model)}
    try:
        for layer in before:
            layer.sampling = enabled
        yield
    finally:
        for layer, was in before.items():
            layer.sampling = was


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
