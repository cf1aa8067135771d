r"""What holds a fine-tuned model near its base: terms of the loss that a Bayesian adapter must be measured against.

- ``l2``: :math:`\sum_m \frac{\gamma_m}{2} \|\theta_m\|^2` over the factors of an adapter.
- ``l2_sp``: :math:`\frac{\gamma}{2} \|W - W_0\|^2` over what is trained, of an adapter
  :math:`\frac{\gamma}{2} \sum \|s B A\|_F^2` (Li, Grandvalet and Davoine, 2018, Explicit inductive bias for transfer
  learning with convolutional networks, arXiv:1802.01483).
- ``ewc``: :math:`\frac{\gamma}{2} \sum_i F_i (W_i - W_{0,i})^2` with the diagonal Fisher information F of the base on
  data like its own (Kirkpatrick et al., 2017, Overcoming catastrophic forgetting in neural networks, arXiv:1612.00796).

The mean of a Bayesian adapter feels :math:`\partial KL / \partial\mu = \mu / \sigma_p^2` of its prior
:math:`N(0, \sigma_p^2)`: exactly that of ``l2`` with the same weight. Plain LoRA with this term is therefore the
Bayesian adapter without its noise, and what the noise is good for shows in the difference. Weight decay of AdamW is no
substitute: it is decoupled from the loss, and at usual settings much weaker.

Sums are taken in float32, outside of mixed precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Factors(NamedTuple):
    """The two factors of an adapter of one layer: the change of its weight is ``scaling B A``."""

    layer: str
    a: Float[Tensor, "rank inputs"]
    b: Float[Tensor, "outputs rank"]
    scaling: float


class L2:
    """A Gaussian prior on the factors of an adapter.

    Args:
        gammas: strength for every factor, given the numbers of their entries.
    """

    def __init__(self, gammas: Callable[[Sequence[int]], Sequence[float]]) -> None:
        self.gammas = gammas

    def __call__(self, model: Any) -> Float[Tensor, ""]:
        with _exact():
            tensors = [tensor for item in lora_factors(model) for tensor in (item.a, item.b)]
            gammas = self.gammas([tensor.numel() for tensor in tensors])
            return _sum(
                gamma / 2 * tensor.float().square().sum() for gamma, tensor in zip(gammas, tensors, strict=True)
            )


class L2SP:
    """Distance of the weights from the base's.

    Args:
        gamma: strength.
        model: the model, with its base's weights and what is to be trained marked so.
    """

    def __init__(self, gamma: float, model: Any) -> None:
        self.gamma = gamma
        self.start = _start(model)

    def __call__(self, model: Any) -> Float[Tensor, ""]:
        with _exact():
            if factors := list(lora_factors(model)):
                return self.gamma / 2 * _sum(squared_norm(item) for item in factors)
            return (
                self.gamma
                / 2
                * _sum(
                    (value.float() - _beside(self.start, name, value)).square().sum() for name, value in _trained(model)
                )
            )


class EWC:
    """Distance of the weights from the base's, each as important as it was for the base's own data.

    Args:
        gamma: strength.
        fisher: diagonal Fisher information by parameter (:func:`~nemo_merge.training.fisher.estimate_fisher`).
        model: the model, with its base's weights and what is to be trained marked so.

    Raises:
        ConfigError: the information lacks a parameter that is trained, or has it in another shape.
    """

    def __init__(self, gamma: float, fisher: Mapping[str, Tensor], model: Any) -> None:
        self.gamma = gamma
        self.start = _start(model)
        weights: dict[str, tuple[int, ...]] = {
            f"{item.layer}.weight": (item.b.shape[0], item.a[0].numel()) for item in lora_factors(model)
        }
        wanted = weights or {name: tuple(value.shape) for name, value in _trained(model)}
        for name, shape in wanted.items():
            if name not in fisher or fisher[name].numel() != math.prod(shape):
                raise ConfigError(f"regulariser ewc: the Fisher information does not fit {name!r} {list(shape)}")
        self.fisher = {name: fisher[name].float() for name in wanted}

    def __call__(self, model: Any) -> Float[Tensor, ""]:
        with _exact():
            return self.gamma / 2 * _sum(self._terms(model))

    def _terms(self, model: Any) -> Iterator[Tensor]:
        factors = list(lora_factors(model))
        for item in factors:
            fisher = _beside(self.fisher, f"{item.layer}.weight", item.a).flatten(1)
            yield (fisher * change(item).square()).sum()
        for name, value in () if factors else _trained(model):
            moved = value.float() - _beside(self.start, name, value)
            yield (_beside(self.fisher, name, value) * moved.square()).sum()


def lora_factors(model: Any) -> Iterator[Factors]:
    """Factors of the active adapters of every layer that has some, as PEFT keeps them."""
    for name, layer in model.named_modules():
        if not (hasattr(layer, "lora_A") and hasattr(layer, "active_adapters")):
            continue
        for adapter in layer.active_adapters:
            if adapter in layer.lora_A:
                yield Factors(
                    name, layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, float(layer.scaling[adapter])
                )


def change(factors: Factors) -> Float[Tensor, "outputs inputs"]:
    """The change that an adapter makes to a layer's weight, as a matrix: ``scaling B A``."""
    return factors.scaling * (factors.b.float().flatten(1) @ factors.a.float().flatten(1))


def squared_norm(factors: Factors) -> Float[Tensor, ""]:
    """``||scaling B A||_F^2`` as the trace of ``(B^T B) (A A^T)``, matrices of the size of the rank."""
    a, b = factors.a.float().flatten(1), factors.b.float().flatten(1)
    return factors.scaling**2 * ((b.T @ b) * (a @ a.T)).sum()


def _trained(model: Any) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in model.named_parameters() if value.requires_grad)


def _start(model: Any) -> dict[str, Tensor]:
    """What is trained, as it is now; nothing for an adapter, which starts from no change."""
    if next(lora_factors(model), None) is not None:
        return {}
    return {name: value.detach().clone().float() for name, value in _trained(model)}


def _beside(kept: dict[str, Tensor], name: str, value: Tensor) -> Tensor:
    """What is kept for a parameter, on its device: the trainer moves the model after this has been made."""
    if kept[name].device != value.device:
        kept[name] = kept[name].to(value.device)
    return kept[name]


def _exact() -> Any:
    """Out of mixed precision."""
    import torch

    return torch.autocast("cuda" if torch.is_autocast_enabled("cuda") else "cpu", enabled=False)


def _sum(terms: Iterable[Tensor]) -> Tensor:
    total: Any = None
    for term in terms:
        total = term if total is None else total + term
    if total is None:
        raise ConfigError("regulariser: nothing that it could hold near the base is trained")
    return total
