"""Parameter groups for models with adapters, also for NeMo's own optimiser set-up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..errors import ConfigError
from .instance_method import InstanceMethod


def parameter_groups(
    model: nn.Module, rho_learning_rate: float | None = None, groups: Iterable[Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """What is trained, in groups for a torch optimiser.

    The spreads of Bayesian adapters (rho) have a group of their own without weight decay, which would pull rho towards
    0 and so make sigma larger. Frozen parameters are in no group.

    Args:
        model: a model, with adapters or not.
        rho_learning_rate: learning rate of the spreads; by default what the adapters were configured with, or else that
            of everything.
        groups: groups to start from, for example of different learning rates; by default one with all parameters.

    Returns:
        The groups; those that would be empty are left out.
    """
    rates = _spreads(model)
    result = []
    for group in groups if groups is not None else [{"params": list(model.parameters())}]:
        kept = [value for value in group["params"] if value.requires_grad and value not in rates]
        if kept:
            result.append({**group, "params": kept})
    by_rate: dict[float | None, list[nn.Parameter]] = {}
    for value, rate in rates.items():
        if value.requires_grad:
            by_rate.setdefault(rho_learning_rate if rho_learning_rate is not None else rate, []).append(value)
    for rate, values in by_rate.items():
        result.append({"params": values, "weight_decay": 0.0, **({} if rate is None else {"lr": rate})})
    return result


def use_parameter_groups(model: Any, rho_learning_rate: float | None = None) -> GroupedOptimisation:
    """Makes NeMo's ``setup_optimization`` use :func:`parameter_groups`, also within a stock ``trainer.fit(model)``.

    Groups of the configuration (``optim_param_groups``) stay as they are, less what is frozen and the spreads.

    Returns:
        A handle whose ``remove()`` ends it.

    Raises:
        ConfigError: not a NeMo model.
    """
    if not callable(getattr(model, "setup_optimizer_param_groups", None)):
        raise ConfigError(
            f"{type(model).__name__} is not a NeMo model; return an optimiser of parameter_groups(model) from its "
            "configure_optimizers"
        )
    return GroupedOptimisation(model, rho_learning_rate)


class GroupedOptimisation(InstanceMethod):
    """A NeMo model's ``setup_optimizer_param_groups``, regrouped."""

    def __init__(self, model: Any, rho_learning_rate: float | None) -> None:
        super().__init__(model, "setup_optimizer_param_groups")
        self.rho_learning_rate = rho_learning_rate

    def __call__(self) -> None:
        self.original()
        groups = self.owner._optimizer_param_groups
        if groups is not None:
            self.owner._optimizer_param_groups = parameter_groups(self.owner, self.rho_learning_rate, groups)


def _spreads(model: nn.Module) -> dict[nn.Parameter, float | None]:
    from .bayesian_layer import bayesian_layers

    return {
        rhos[name]: config.rho_learning_rate
        for _, layer in bayesian_layers(model)
        for name, config in layer.posteriors.items()
        for rhos in (layer.lora_rho_A, layer.lora_rho_B)
        if name in rhos
    }
