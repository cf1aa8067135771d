"""Looks at the values of every tensor once: are they finite, and did any expert change them?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..checkpoints import Checkpoint
from ..tensors import Role, role_of
from .blocks import BLOCK_ELEMENTS


@dataclass
class Scan:
    """What the values of one tensor show.

    Attributes:
        changed: whether it differs from the template in any expert.
        problems: what stands against merging it.
    """

    changed: bool = False
    problems: list[str] = field(default_factory=list)


def scan_tensor(name: str, template: Checkpoint, experts: Sequence[Checkpoint]) -> Scan:
    """Scans one tensor of the template and of all experts that have it in the same shape."""
    spec = template.specs[name]
    role = role_of(name, spec.shape, spec.dtype)
    scan = Scan()
    holders = [template, *(expert for expert in experts if expert is not template)]
    same = [holder for holder in holders if name in holder.specs and holder.specs[name].shape == spec.shape]
    # What an adapter changes is told from its factors, which are finite; multiplying them out would read all of the
    # base.
    changes = [(holder, holder.low_rank(name)) for holder in same]
    moved = [holder for holder, change in changes if change]
    same = [holder for holder, change in changes if change is None]
    tensors = [holder[name] for holder in same]
    different, bad, negative = [False] * len(tensors), [0] * len(tensors), [False] * len(tensors)
    for parts in _pieces(tensors):
        for index, part in enumerate(parts):
            different[index] = different[index] or not torch.equal(part.to(parts[0]), parts[0])
            bad[index] += _count_non_finite(part)
            if role is Role.BATCH_NORM_VARIANCE:
                negative[index] = negative[index] or bool((part < 0).any())
    for index, holder in enumerate(same):
        if bad[index]:
            scan.problems.append(
                f"{holder.path}: tensor {name!r} holds {bad[index]} values that are NaN or infinite; "
                "this model is broken"
            )
        elif negative[index]:
            scan.problems.append(f"{holder.path}: tensor {name!r} holds negative variances; this model is broken")
    scan.changed = any(different) or bool(moved)
    if scan.changed and role is Role.PREPROCESSOR:
        changers = [holder for holder, differs in zip(same, different, strict=True) if differs] + moved
        who = ", ".join(str(holder.path) for holder in changers)
        scan.problems.append(
            f"{who}: tensor {name!r} differs from that of {template.path}: the models hear other features"
        )
    return scan


def _pieces(tensors: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """The tensors in step, cut into rows that fit the cache."""
    if tensors[0].dim() == 0:
        yield tensors
        return
    rows = tensors[0].shape[0]
    step = max(1, BLOCK_ELEMENTS * rows // max(tensors[0].numel(), 1))
    for first in range(0, rows, step):
        yield [tensor[first : first + step] for tensor in tensors]


def _count_non_finite(part: Tensor) -> int:
    if not part.dtype.is_floating_point:
        return 0
    # One sum tells almost always: it is finite only if all terms are. When it overflows, the terms are counted.
    if torch.isfinite(part.sum(dtype=torch.float32 if part.dtype.itemsize < 4 else None)):
        return 0
    return int((~torch.isfinite(part)).sum())
