"""Many values of parameters for one set of experts, without doing the same work twice."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import methods
from ..checkpoints import Checkpoint
from ..errors import ConfigError, OutputError
from ..methods import Method
from .api import MergeReport, Options, merge_variants
from .inputs import Source
from .plan import BatchNorm, Rules, Then
from .ranks import ALONE, Ranks
from .recalibration import Audio
from .vocabulary import VocabularyPolicy


def sweep(
    base: Source | None,
    experts: Sequence[Source],
    method: str = "boosted_tsvm",
    *,
    grid: Mapping[str, Sequence[Any]],
    output: str | os.PathLike[str],
    overwrite: bool = False,
    rules: Rules = (),
    then: Then = (),
    batch_norm: BatchNorm = "average",
    audio: Audio | None = None,
    dtype: str | None = None,
    vocabulary: VocabularyPolicy = "strict",
    device: str = "cpu",
    workers: int | None = None,
    progress: bool | None = None,
    ranks: Ranks = ALONE,
    **parameters: Any,
) -> list[MergeReport]:
    """Merges once for every combination of values, computing what they share once.

    Inputs are read, checked and hashed once. Values of a method's ``late`` parameters (``scale`` of all, ``beta`` of
    BoostedTSV-M) share the singular value decompositions; each result has the bytes of a merge by itself.

    Example:
        >>> sweep("base.nemo", ["a.nemo", "b.nemo"], "boosted_tsvm", output="sweep",
        ...       grid={"beta": [0.1, 0.3], "scale": [0.8, 1.0]})  # doctest: +SKIP

    Args:
        base: the model that the experts were fine-tuned from.
        experts: the fine-tuned models.
        method: name of a merging method.
        grid: values to try, by parameter.
        output: folder, made when missing; it gets one checkpoint per combination, named by its values.
        overwrite: replace outputs that exist.
        rules: as in :func:`~nemo_merge.merging.merge`, like all that follows.
        then: post-processors.
        batch_norm: what happens to running statistics.
        audio: for ``batch_norm="recalibrate"``.
        dtype: type of the merged weights.
        vocabulary: what happens when the inputs' tokens differ.
        device: where spectral methods factorise.
        workers: threads.
        progress: show a progress bar.
        ranks: the processes that share the work, see :func:`~nemo_merge.merging.ranks.ranks_of_torchrun`.
        **parameters: further parameters of the method, the same for all.

    Raises:
        ConfigError: the grid is empty, or a parameter does not exist.
        OutputError: an output exists, or the folder cannot be made.
    """
    variants = variants_of(method, grid, parameters)
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); choose another output") from error
    first = base if base is not None else experts[0]
    given = first["path"] if isinstance(first, Mapping) and not isinstance(first, Checkpoint) else first
    path = Path(getattr(given, "path", given))  # type: ignore[arg-type]
    suffix = path.suffix if path.suffix in (".nemo", ".ckpt", ".safetensors", ".pt", ".pth") else ""
    outputs = {folder / f"{label}{suffix}": variant for label, variant in variants.items()}
    options = Options(
        rules=rules,
        then=then,
        batch_norm=batch_norm,
        audio=audio,
        dtype=dtype,
        vocabulary=vocabulary,
        device=device,
        workers=workers,
        overwrite=overwrite,
        progress=progress,
        ranks=ranks,
    )
    return merge_variants(base, experts, outputs, options)


def variants_of(method: str, grid: Mapping[str, Sequence[Any]], parameters: Mapping[str, Any]) -> dict[str, Method]:
    """The method for every combination of values, by a label such as ``ties-density=0.2,scale=1.0``.

    Example:
        >>> list(variants_of("ties", {"density": [0.2, 0.5]}, {"scale": 0.8}))
        ['ties-density=0.2', 'ties-density=0.5']

    Raises:
        ConfigError: the grid is empty or holds a parameter twice, or a parameter does not exist.
    """
    for key, values in grid.items():
        if key in parameters:
            raise ConfigError(f"{key} is in the grid and given beside it; leave one of them out")
        if not values:
            raise ConfigError(f"the grid has no values for {key}")
    if not grid:
        raise ConfigError("a sweep needs at least one parameter with several values, such as method.scale=0.5,1.0")
    variants = {}
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        label = ",".join(f"{key}={_shown(value)}" for key, value in chosen.items())
        variants[f"{method}-{label}"] = methods.get(method, **parameters, **chosen)
    return variants


def _shown(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
