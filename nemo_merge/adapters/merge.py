"""Merges adapters into one adapter, or into their base."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal

from .. import methods
from ..checkpoints import AdapterCheckpoint
from ..errors import ConfigError, PlanError
from ..merging import MergeReport, merge
from ..merging.inputs import Source, open_source
from ..methods import Method


def merge_adapters(
    base: Source,
    adapters: Sequence[Source],
    method: str | Method = "boosted_tsvm",
    *,
    output: str | os.PathLike[str],
    rank: int | Literal["exact"] | None = None,
    dense: bool = False,
    **parameters: Any,
) -> MergeReport:
    """Merges LoRA adapters of one base, Bayesian ones among them, into one LoRA or into the base.

    What is merged are the changes of the weights ``s B A``, never the factors themselves, which adapters of separate
    trainings do not share. Ranks, scalings and adapted modules may differ.

    Example::

        merge_adapters("base.nemo", ["lora-news", "lora-telephone"], "tsvm", output="lora-both")

    Args:
        base: the model that the adapters were trained on.
        adapters: folders of PEFT, or what else :func:`nemo_merge.merge` takes for one.
        method: name of a merging method, or a method.
        output: the folder of the merged adapter; with ``dense`` the merged model, in the base's format.
        rank: the largest rank of the merged adapter, or ``exact`` for as much as it takes (the sum of the adapters'
            ranks at most). By default exact where the method is rotation-equivariant, else the largest rank of the
            adapters, to which the result is cut; what that loses is among the warnings.
        dense: write a whole model instead of an adapter.
        **parameters: parameters of the method, and further options of :func:`nemo_merge.merge`. A parameter of a method
            that is called as one of the above (``rank`` of ``lors``) is part of a finished method instead.

    Raises:
        PlanError: an input is no LoRA adapter, or does not fit; all problems are listed.
        NemoMergeError: as :func:`nemo_merge.merge` raises them.
    """
    if "as_adapter" in parameters:
        raise ConfigError("merge_adapters has rank= and dense= instead of as_adapter")
    if dense and rank is not None:
        raise ConfigError(f"rank={rank!r} is that of a merged adapter; leave it or dense=True out")
    if not (rank in (None, "exact") or (isinstance(rank, int) and not isinstance(rank, bool) and rank > 0)):
        raise ConfigError(f"rank={rank!r} is neither 'exact' nor a rank of 1 or more")
    with ExitStack() as stack:
        opened = [open_source(adapter, stack) for adapter in adapters]
        problems = [
            f"{item.path}: is no PEFT adapter ({item.format}); nemo_merge.merge takes other experts"
            for item in opened
            if not isinstance(item, AdapterCheckpoint)
        ]
        if problems:
            raise PlanError(problems)
        as_adapter: bool | int = not dense
        if isinstance(rank, int):
            as_adapter = rank
        elif rank is None and not dense and not _exact(method, parameters):
            as_adapter = max((item.rank for item in opened if isinstance(item, AdapterCheckpoint)), default=1)
        return merge(base, opened, method, output=output, as_adapter=as_adapter, **parameters)


def _exact(method: str | Method, parameters: dict[str, Any]) -> bool:
    """Whether the method, with these of the parameters that are its own, gives a change of low rank."""
    if isinstance(method, str):
        own = {item.name for item in methods.parameters(methods.method_class(method))}
        method = methods.get(method, **{key: value for key, value in parameters.items() if key in own})
    return method.rotation_equivariant
