"""Whether the experts say how sure they are of their changes, where a method asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..checkpoints import Checkpoint
from ..methods import Method
from ..posterior import Posterior


def check_posteriors(rows: Iterable[tuple[str, Method]], experts: Iterable[Checkpoint]) -> Iterator[str]:
    """What stands against merging by methods that weight by posteriors; one sentence per expert and kind.

    Args:
        rows: the tensors that methods treat by their own arithmetic, with these methods.
        experts: the experts.
    """
    asking = [(name, method) for name, method in rows if method.uses_posteriors]
    for expert in experts:
        found = [(name, method, expert.posterior(name)) for name, method in asking]
        missing = [(name, method) for name, method, posterior in found if posterior is None]
        if missing:
            name, method = missing[0]
            yield (
                f"{expert.path}: has no posterior of {_shown(name, len(missing))}, which {method.name} weights by; "
                "train the expert with Bayesian LoRA and save it with its posteriors (lora_rho_A beside lora_A), merge "
                "by another method, for example soup, or give these tensors another one by a rule"
            )
        priors = [
            (name, method)
            for name, method, posterior in found
            if posterior is not None and posterior.prior is None and method.uses_priors
        ]
        if priors:
            name, method = priors[0]
            yield (
                f"{expert.path}: does not say the prior of {_shown(name, len(priors))} (prior_scale in "
                f"bayesian_lora.json); merge by {method.name} without prior_correction"
            )
        yield from (
            f"{expert.path}: the variances of tensor {name!r} {why}"
            for name, _, posterior in found
            if posterior is not None and (why := _broken(posterior, expert.specs[name].shape))
        )


def _shown(name: str, count: int) -> str:
    return f"tensor {name!r}" + (f" and {count - 1} more" if count > 1 else "")


def _broken(posterior: Posterior, shape: tuple[int, ...]) -> str:
    """What is wrong with variances that are given entry by entry; those of factors are checked by their reader."""
    if not isinstance(posterior.variance, Tensor):
        return ""
    if posterior.variance.shape != shape:
        return f"are {list(posterior.variance.shape)}, but it is {list(shape)}"
    return "are not all 0 or more" if not bool(torch.all(posterior.variance >= 0)) else ""
