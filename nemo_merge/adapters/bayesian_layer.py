"""PEFT's LoRA layer with a Gaussian posterior over its factors; importing this module imports PEFT."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.functional import softplus

from .bayesian_lora import BayesianLoraConfig
from .estimators import ESTIMATORS

NEW_POSTERIOR: ContextVar[BayesianLoraConfig | None] = ContextVar("new_posterior", default=None)
"""What adapters that PEFT adds now are: Bayesian with these settings, or plain LoRA.

PEFT passes settings to its layers in ways that differ from version to version, and it also adds adapters by itself, for
example combined ones; those must be plain.
"""


class BayesianLinear(Linear):
    """A linear layer with adapters; some or all of them have a posterior ``N(mu, softplus(rho)^2)`` over A and B.

    The means are PEFT's own ``lora_A`` and ``lora_B``, so whatever PEFT does with an adapter (merge, save, combine) it
    does with the means. The spreads are ``lora_rho_A`` and, unless B is deterministic, ``lora_rho_B``. Both stay in
    float32 when the base has 16 bits: a step of Adam is smaller than the grid of bfloat16 around rho = -5.

    Attributes:
        posteriors: settings of the Bayesian adapters by name.
        sampling: whether weights are drawn in training; in evaluation they never are.
    """

    adapter_layer_names = (*Linear.adapter_layer_names, "lora_rho_A", "lora_rho_B")
    other_param_names = (*Linear.other_param_names, "posteriors")

    def update_layer(self, adapter_name: str, r: int, *args: Any, **kwargs: Any) -> None:
        # Called by PEFT's constructor too. What follows the rank differs between versions and is passed on unseen.
        if "lora_rho_A" not in self._modules:
            self.lora_rho_A, self.lora_rho_B = nn.ParameterDict(), nn.ParameterDict()
            self.posteriors: dict[str, BayesianLoraConfig] = {}
            self.sampling = True
        config = NEW_POSTERIOR.get()
        if config is not None:
            self.posteriors[adapter_name] = config
            low, high = config.rho_init
            assert self.in_features is not None
            assert self.out_features is not None
            self.lora_rho_A[adapter_name] = nn.Parameter(torch.empty(r, self.in_features).uniform_(low, high))
            if not config.a_only and config.sigma_b != "deterministic":
                rho = torch.empty(self.out_features, r)
                if config.sigma_b == "same":
                    rho.uniform_(low, high)
                else:
                    rho.fill_(math.log(math.expm1(float(config.sigma_b))))
                self.lora_rho_B[adapter_name] = nn.Parameter(rho)
        super().update_layer(adapter_name, r, *args, **kwargs)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        drawn = self.training and self.sampling and any(name in self.posteriors for name in self.active_adapters)
        if not drawn or self.disable_adapters or self.merged or kwargs.get("adapter_names") is not None:
            return super().forward(x, *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        dtype = result.dtype
        for name in self.active_adapters:
            if name in self.lora_A:
                mean: Any = self.lora_A[name].weight
                hidden = self._draw(self.lora_dropout[name](self._cast_input_dtype(x, mean.dtype)), name, "A")
                result = result + self._draw(hidden, name, "B") * self.scaling[name]
        return result.to(dtype)

    def _draw(self, x: Tensor, name: str, which: str) -> Tensor:
        factor, rho = getattr(self, f"lora_{which}")[name], getattr(self, f"lora_rho_{which}").get(name)
        if rho is None:
            return factor(x)
        return ESTIMATORS[self.posteriors[name].estimator](x, factor.weight, softplus(rho))

    def factors(self, name: str) -> list[tuple[Tensor, Tensor | None]]:
        """Means and rho of the factors of an adapter that have a prior; rho is None where the factor is a point."""
        pairs: list[tuple[Any, Any]] = [
            (self.lora_A[name].weight, self.lora_rho_A.get(name)),
            (self.lora_B[name].weight, self.lora_rho_B.get(name)),
        ]
        return pairs[:1] if self.posteriors[name].a_only else pairs

    def delta_variance(self, name: str) -> Float[Tensor, "outputs inputs"]:
        r"""Variance of every entry of the change ``scaling * B A`` under an adapter's posterior.

        ``scaling^2 (mu_B^2 sigma_A^2 + sigma_B^2 mu_A^2 + sigma_B^2 sigma_A^2)`` with squares taken entry by entry and
        products of matrices; exact, since A and B are independent.
        """
        factors: list[Any] = [self.lora_A[name], self.lora_B[name]]
        mean_a, mean_b = (factor.weight.square() for factor in factors)
        variance_a = softplus(self.lora_rho_A[name]).square()
        variance = mean_b @ variance_a
        if name in self.lora_rho_B:
            variance = variance + softplus(self.lora_rho_B[name]).square() @ (mean_a + variance_a)
        return variance * self.scaling[name] ** 2

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        with self._precision_kept():
            return super()._apply(fn, recurse)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        with self._precision_kept():
            super()._move_adapter_to_device_of_base_layer(adapter_name, *args, **kwargs)

    @contextmanager
    def _precision_kept(self) -> Iterator[None]:
        """Undoes what rounds posteriors to 16 bits; they still follow to another device."""
        before = {key: parameter.data for key, parameter in self._posterior_parameters()}
        yield
        for key, parameter in self._posterior_parameters():
            if parameter.dtype.itemsize < 4 and parameter.is_floating_point():
                parameter.data = before[key].to(parameter.device, torch.float32)

    def _posterior_parameters(self) -> Iterator[tuple[tuple[str, str], nn.Parameter]]:
        for name in self.__dict__.get("posteriors", ()):
            for part in ("lora_A", "lora_B"):
                if name in (factors := getattr(self, part)):
                    yield (part, name), factors[name].weight
            for part in ("lora_rho_A", "lora_rho_B"):
                if name in (rhos := getattr(self, part)):
                    yield (part, name), rhos[name]


def bayesian_layers(model: nn.Module) -> Iterator[tuple[str, BayesianLinear]]:
    """The layers of a model that Bayesian adapters may be in, by name."""
    for name, module in model.named_modules():
        if isinstance(module, BayesianLinear):
            yield name, module
