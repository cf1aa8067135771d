"""Terms that join the loss of any model that Lightning trains, whatever its own loss is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError
from .instance_method import InstanceMethod

Term = Callable[[Any], Float[Tensor, ""]]


@dataclass(frozen=True)
class LossTermHandle:
    """What removes a term again."""

    terms: LossTerms
    name: str

    def remove(self) -> None:
        """Takes the term out of the loss; a second call does nothing."""
        self.terms.terms.pop(self.name, None)
        if not self.terms.terms:
            self.terms.remove()


class LossTerms(InstanceMethod):
    """The ``training_step`` of a model with terms added to what it returns."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, "training_step")
        self.terms: dict[str, Term] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.original(*args, **kwargs)
        if output is None or not self.terms:  # None: Lightning skips the batch
            return output
        total: Any = 0.0
        for name, term in self.terms.items():
            value = term(self.owner)
            if not isinstance(value, Tensor) or value.ndim:
                raise ConfigError(f"loss term {name!r} is {_kind(value)}, not a tensor with one value")
            log(self.owner, f"train_{name}", value.detach())
            total = total + value
        if isinstance(output, Tensor):
            return output + total.to(output.device)
        return {**output, "loss": output["loss"] + total.to(output["loss"].device)}


def add_loss_term(model: Any, name: str, term: Term) -> LossTermHandle:
    """Adds a term to the loss of every training step.

    It works with every model that Lightning optimises by itself, so with NeMo's CTC, RNN-T, hybrid and attention models
    alike. ``train_loss`` stays the model's own loss; the term is logged beside it as ``train_<name>``. With gradient
    accumulation Lightning divides the sum by the number of batches, so one optimiser step sees the term once; under DDP
    the gradients of the ranks are averaged, so it counts once there too.

    Args:
        model: a LightningModule, for example any ``ModelPT``.
        name: of the term; each can be there once.
        term: called with the model after its own ``training_step``, gives a scalar that gradients flow through.

    Returns:
        A handle whose ``remove()`` takes the term out again.

    Raises:
        ConfigError: no such model, one with an optimisation loop of its own, or a name that is taken.
    """
    if not callable(getattr(model, "training_step", None)):
        raise ConfigError(
            f"{type(model).__name__} has no training_step; give a LightningModule, or add the term in your own loop"
        )
    if not getattr(model, "automatic_optimization", True):
        raise ConfigError(
            f"{type(model).__name__} has an optimisation loop of its own (automatic_optimization is False), which does "
            "not use the loss that training_step returns; add the term there"
        )
    if not name.isidentifier():
        raise ConfigError(f"loss term {name!r}: the name must be letters, digits and underscores")
    terms = vars(model).get("training_step")
    if not isinstance(terms, LossTerms):
        terms = LossTerms(model)
    if name in terms.terms:
        raise ConfigError(f"the loss has a term {name!r} already; remove() it first or choose another name")
    terms.terms[name] = term
    return LossTermHandle(terms, name)


def trainer_of(model: Any) -> Any | None:
    """The trainer whose training loop is running this model, if one is."""
    trainer = getattr(model, "_trainer", None)
    return trainer if trainer is not None and trainer.training and trainer.state.status == "running" else None


def log(model: Any, name: str, value: Float[Tensor, ""] | float) -> None:
    """Logs a value of this training step, where a trainer is running."""
    if trainer_of(model) is not None:
        model.log(name, value)


def _kind(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
