"""Which parameters are trained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    from .fine_tune import FineTuningJob


def make_trainable(job: FineTuningJob, model: Any) -> None:
    """Marks what a job trains, adds its adapter, and keeps statistics of frozen batch normalisation still.

    Raises:
        ConfigError: a pattern matches nothing, or the adapter cannot be added.
    """
    from .. import adapters

    if job.trainable == "lora":
        adapters.inject_lora(model, **job.adapter)
    elif job.trainable == "bayesian_lora":
        adapters.inject_bayesian_lora(model, adapters.BayesianLoraConfig(**job.adapter))
    else:
        mark(model, job.trainable)
        adapters.use_parameter_groups(model)
        adapters.still_batch_norm(model)


def mark(model: Any, trainable: str | Sequence[str], encoder: str = "encoder.") -> None:
    """Makes parameters require gradients, and only those.

    Args:
        model: a model of NeMo or transformers.
        trainable: ``full``, ``encoder``, ``decoder`` (all but the encoder), or regular expressions that are looked for
            in the names of parameters.
        encoder: what the names of the encoder's parameters begin with.

    Raises:
        ConfigError: a pattern matches nothing.
    """
    part = re.escape(encoder)
    patterns = {"full": [""], "encoder": [f"^{part}"], "decoder": [f"^(?!{part})"]}.get(
        trainable if isinstance(trainable, str) else "", trainable
    )
    named = list(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        if not any(re.search(pattern, name) for name, _ in named):
            raise ConfigError(f"trainable: no parameter has a name with {pattern!r}; they are like {_examples(named)}")
    for _, parameter in named:
        parameter.requires_grad_(False)
    for name, parameter in named:  # a tied parameter has several names
        if any(re.search(pattern, name) for pattern in patterns):
            parameter.requires_grad_(True)


def _examples(named: Sequence[tuple[str, Any]]) -> str:
    return ", ".join(repr(named[index][0]) for index in sorted({0, len(named) // 2, len(named) - 1}))
