"""EMR: one unified task vector, with a mask and a factor per expert that bring each expert nearly back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from ._blocks import Block
from ._method import Method
from ._registry import register


@register
@dataclass(frozen=True)
class Emr(Method):
    """Elects a sign per entry and takes the largest magnitude that has it.

    Huang et al., 2024, EMR-Merging, arXiv 2405.17461, section 3. With ``d_t = w_t (expert_t - base)``:
    ``sign = sign(sum_t d_t)``, ``unified = sign * max over t with that sign of |d_t|``. The merged model is
    ``base + scale * unified``.

    Beside the model a package is written (``OUTPUT.emr.safetensors``) with a mask ``M_t = [d_t sign > 0]`` of one bit
    per entry and a factor ``lambda_t = sum over tensors of mean|d_t| / sum over tensors of mean|unified M_t|`` per
    expert. ``nemo-merge emr-apply`` makes the model of one domain of it: ``base + lambda_t * unified * M_t``.
    """

    name: ClassVar[str] = "emr"
    family: ClassVar[str] = "task vectors"
    source: ClassVar[str] = "Huang et al., 2024, arXiv 2405.17461"

    def combine_block(
        self, block: Block, weights: Float[Tensor, " experts"], statistics: Any
    ) -> Float[Tensor, "*shape"]:
        return unified(block.weighted(weights))


def unified(deltas: Float[Tensor, "experts *shape"]) -> Float[Tensor, "*shape"]:
    """The unified task vector of weighted ones."""
    sign = deltas.sum(0).sign()
    return sign * (deltas * sign).amax(0).clamp_min_(0)  # exact: the sign is 1, -1 or 0
