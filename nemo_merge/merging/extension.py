"""Adds an expert to a merged model, and takes one out again."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoints import AdapterCheckpoint, Checkpoint, NemoAdapterCheckpoint, PackCheckpoint
from ..checkpoints.pack import PACK_SUFFIX
from ..errors import ConfigError, OutputError, PlanError
from .api import MergeReport
from .composition import Composition, Member
from .inputs import Source, name_of, open_source
from .locate import Found
from .merged_model import How, MergedModel
from .packs import PackOptions, PackReport, pack
from .plan import VocabularyPolicy

logger = logging.getLogger("nemo_merge")


@dataclass(frozen=True)
class ExtensionReport:
    """What was done to a merged model.

    Attributes:
        merge: what the merge behind it did.
        how: ``merge`` (of all experts) or ``update`` (by the one).
        experts: names of the experts that are in the model now.
        approximations: in what it differs from a merge of these experts.
        pack: the pack that was made of the added expert.
    """

    merge: MergeReport
    how: str
    experts: Sequence[str]
    approximations: Sequence[str] = ()
    pack: PackReport | None = None

    @property
    def output(self) -> Path:
        """The new model."""
        return self.merge.output

    def __str__(self) -> str:
        way = "merged again" if self.how == "merge" else "updated"
        line = f"{self.output}: {way} in {self.merge.seconds:.1f} s; holds {', '.join(self.experts)}"
        return f"{line}\n{self.pack}" if self.pack else line


def extend(
    merged: str | os.PathLike[str],
    expert: Source,
    output: str | os.PathLike[str],
    *,
    name: str | None = None,
    weight: float = 1.0,
    scale: float | None = None,
    how: How = "auto",
    base: Source | None = None,
    inputs: Sequence[str | os.PathLike[str]] = (),
    packs: str | os.PathLike[str] | None = None,
    vocabulary: VocabularyPolicy | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    progress: bool | None = None,
    **pack_options: Any,
) -> ExtensionReport:
    """Adds an expert to a merged model: a language, a domain.

    What is inside is known from the model's record. There are two ways:

    - ``merge``: all experts, this one too, are merged again by the recorded method and options. It takes the earlier
      experts, or packs of them.
    - ``update``: the merged model is changed by this expert alone. For methods that treat every expert by itself and
      add (:meth:`~nemo_merge.methods.Method.additive_factor`: soup, task arithmetic, LoRS-Merging, Model Breadcrumbs,
      STAR) that is the same up to rounding: with the default scale of 1/T, ``base + T/(T+1) (merged - base) +
      1/(T+1) change``. For others it is an approximation, the running mean of the models.

    ``auto`` merges where all earlier experts are found, updates where that is the same, then merges from packs, and
    refuses else.

    Example:
        >>> extend("merged.nemo", "es.nemo", "with_es.nemo", packs="packs")  # doctest: +SKIP

    Args:
        merged: a model that was merged by nemo_merge.
        expert: the expert to be added, fine-tuned from the same base.
        output: the new model.
        name: what the expert is called from now on; by default the name of its file.
        weight: its weight; the others keep theirs.
        scale: of the merged task vector; by default as before, or the method's default for one expert more where it was
            the default before.
        how: ``auto``, ``merge`` or ``update``.
        base: the base, if it is not where it was; its SHA-256 must be the recorded one.
        inputs: folders in which earlier experts are looked for by their names.
        packs: folder of packs of earlier experts; a pack of this expert is added to it.
        vocabulary: as in :func:`~nemo_merge.merging.merge`; by default as recorded, else ``union``.
        overwrite: replace an output that exists.
        workers: threads; the number of cores by default.
        progress: show a progress bar; by default only on a terminal.
        **pack_options: how the expert is packed, see :class:`~nemo_merge.merging.packs.PackOptions`.

    Raises:
        CheckpointError: the model carries no record, the base is missing or another one, or an input cannot be read.
        ConfigError: a name that is inside already, or an option out of range.
        PlanError: the expert does not fit, or there is no way to add it; what is missing is named.
        OutputError: an output exists or cannot be written.
    """
    model = MergedModel(merged, base, inputs, packs)
    old, target = model.composition, Path(output)
    with ExitStack() as stack:
        name = _checked(name, open_source(expert, stack), old)
        if not math.isfinite(weight) or weight == 0:
            raise ConfigError(f"weight={weight!r} is not a finite number other than 0")
        after = replace(
            old,
            members=[*old.members, Member(name, float(weight), {})],
            method=model.settings(len(old.members) + 1, scale),
            history=[*old.history, f"{name} added"],
        )
        found = {member.name: model.locator.expert(member) for member in old.members}
        way = model.way(how, after, found, Found(expert))
        others = {"overwrite": overwrite, "workers": workers, "progress": progress}
        with _kept(expert, name, model, packs, workers, pack_options) as made:
            if way == "merge":
                sources = [*(item.source for item in found.values() if item is not None), expert]
                report = model.merge(after, sources, target, vocabulary, **others)
            else:
                report = model.update(after, {"add": name}, expert, target, vocabulary, **others)
    return _report(report, way, made)


def forget(
    merged: str | os.PathLike[str],
    name: str,
    output: str | os.PathLike[str],
    *,
    scale: float | None = None,
    how: How = "auto",
    base: Source | None = None,
    inputs: Sequence[str | os.PathLike[str]] = (),
    packs: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    progress: bool | None = None,
) -> ExtensionReport:
    """Takes an expert out of a merged model.

    ``merge`` merges the others again; ``update`` takes the expert's share away, for which it or its pack has to be
    there, and is possible for methods that add (see :func:`extend`). ``auto`` merges where all others are found,
    updates where the expert is found, then merges from packs, then updates by a pack, and refuses else. What a pack
    lacks of the expert's change stays in the model; the report says how much.

    Args:
        merged: a model that was merged by nemo_merge.
        name: the expert's name; :attr:`ExtensionReport.experts` and the model's card list them.
        output: the new model.
        scale: as in :func:`extend`, for one expert less.
        how: ``auto``, ``merge`` or ``update``.
        base: as in :func:`extend`.
        inputs: as in :func:`extend`.
        packs: folder of packs of the experts.
        overwrite: replace an output that exists.
        workers: threads; the number of cores by default.
        progress: show a progress bar; by default only on a terminal.

    Raises:
        CheckpointError, ConfigError, PlanError, OutputError: as by :func:`extend`.
    """
    model = MergedModel(merged, base, inputs, packs)
    old = model.composition
    member = old.member(name)
    rest = [other for other in old.members if other is not member]
    if not rest:
        raise PlanError([f"{model.path}: {name} is the only expert in it; what would be left is the base"])
    settings = model.settings(len(rest), scale)
    after = replace(old, members=rest, method=settings, history=[*old.history, f"{name} taken out"])
    found = {other.name: model.locator.expert(other) for other in rest}
    own = model.locator.expert(member)
    way = model.way(how, after, found, own)
    others = {"overwrite": overwrite, "workers": workers, "progress": progress}
    if way == "merge":
        sources = [item.source for item in found.values() if item is not None]
        return _report(model.merge(after, sources, Path(output), None, **others), way)
    assert own is not None
    if own.error:
        stays = f"{name} was taken out by its pack, which lacks {own.error:.1%} of its change: so much of it stays"
        after = replace(after, approximations=[*after.approximations, stays])
    report = model.update(after, {"forget": name}, own.source, Path(output), None, **others)
    return _report(report, way)


def _checked(name: str | None, expert: Checkpoint, composition: Composition) -> str:
    """The name of an expert that is to be added.

    Raises:
        ConfigError: the name is taken, or the expert is inside.
    """
    chosen = name or name_of(expert.path)
    if chosen in composition.names:
        raise ConfigError(f"{chosen!r} is the name of an expert that is in the model already; pass another name")
    digests = expert.about["expert"]["sha256"] if isinstance(expert, PackCheckpoint) else expert.sha256()
    for member in composition.members:
        if member.digests == sorted(digests.values()):
            raise ConfigError(f"{expert.path}: is in the model already, as {member.name!r}")
    return chosen


@contextlib.contextmanager
def _kept(
    expert: Source,
    name: str,
    model: MergedModel,
    packs: str | os.PathLike[str] | None,
    workers: int | None,
    options: Mapping[str, Any],
) -> Iterator[PackReport | None]:
    """Packs the expert that is added, unless it is there packed, is small already, or nothing is to be packed.

    The pack goes again if what is done meanwhile fails.
    """
    if packs is None:
        if options:
            raise ConfigError(f"{', '.join(options)}: there is no pack to make; say where to with packs")
        yield None
        return
    PackOptions.of(options)
    with ExitStack() as stack:
        opened = open_source(expert, stack)
        small = isinstance(opened, (AdapterCheckpoint, NemoAdapterCheckpoint, PackCheckpoint))
        if small or model.locator.has_pack(opened):
            yield None
            return
    if model.base is None:
        raise ConfigError(f"{model.path}: was merged without a base, of which packs are changes; leave packs out")
    target = Path(packs, name + PACK_SUFFIX)
    if target.exists():
        raise OutputError(f"{target}: is the pack of another expert; pass another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    made = pack(expert, model.base, target, name=name, workers=workers, **options)
    model.locator.add(made.output)
    try:
        yield made
    except BaseException:
        made.output.unlink(missing_ok=True)
        raise


def _report(merge: MergeReport, way: str, made: PackReport | None = None) -> ExtensionReport:
    composition = Composition.of(merge.provenance, merge.output)
    for sentence in composition.approximations:
        logger.warning("%s: approximate: %s", merge.output, sentence)
    return ExtensionReport(merge, way, composition.names, composition.approximations, made)
