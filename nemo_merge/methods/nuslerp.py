"""NuSLERP: along the arc between two task vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._registry import register
from ._span import Space
from .slerp import Slerp


@register
@dataclass(frozen=True)
class Nuslerp(Slerp):
    """Spherical interpolation between the task vectors of two experts, added to the base.

    Goddard et al., mergekit, arXiv 2403.13257. The formula is that of ``slerp`` with ``expert - base`` for a and b;
    ``granularity=row`` interpolates what belongs to every output unit along its own arc.

    Differences: mergekit's weights of sum zero mean t = 1/2; here they are refused.
    """

    name: ClassVar[str] = "nuslerp"
    family: ClassVar[str] = "task vectors"
    source: ClassVar[str] = "Goddard et al., 2024, arXiv 2403.13257"
    space: ClassVar[Space] = "task_vectors"
