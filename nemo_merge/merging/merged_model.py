"""A merged model whose experts are to be others: what its record says, what can be done, and doing it."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..checkpoints import Checkpoint, check_output, open_checkpoint
from ..errors import ConfigError, PlanError, did_you_mean
from ..methods import Method
from ..methods.emr import Emr
from .api import MergeReport, Options, merge_variants, written_files
from .composition import Composition, Member
from .inputs import Source
from .locate import Found, Locator
from .plan import VocabularyPolicy
from .provenance import plain, record_of
from .ranges import numbers_of
from .reproduce import recorded_options
from .update import Update, method_of, tokens_after, update_inputs

How = Literal["auto", "merge", "update"]
Way = Literal["merge", "update"]
_REMEDY = "say where the experts are with inputs (folders), or their packs with packs (a folder)"
_LINEAR = ("soup", "task_arithmetic")  # what they make of an expert alone is the expert


class MergedModel:
    """A merged model.

    Args:
        path: its file or folder.
        base: its base, if it is not where it was.
        inputs: folders in which its inputs are looked for by their names.
        packs: folder of packs of its experts.

    Raises:
        CheckpointError: it carries no record of a merge, or the base is missing or another one.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        base: Source | None,
        inputs: Sequence[str | os.PathLike[str]],
        packs: str | os.PathLike[str] | None,
    ) -> None:
        self.path = Path(path)
        with open_checkpoint(self.path) as checkpoint:
            self.record = record_of(checkpoint)
        self.composition = Composition.of(self.record, self.path)
        self.locator = Locator([Path(), self.path.parent, *map(Path, inputs)], Path(packs) if packs else None)
        recorded = self.record.get("base")
        if recorded is None and base is not None:
            raise ConfigError(f"{self.path}: was merged without a base; leave base out")
        self.base = self.locator.base(recorded, base) if recorded is not None else None
        self._before = method_of({**self.composition.method, "weights": self.composition.weights})

    def settings(self, experts: int, scale: float | None) -> dict[str, Any]:
        """The method's parameters for another number of experts: a scale that was the default is the default again."""
        said, count = dict(self.composition.method), len(self.composition.members)
        if scale is None and not math.isclose(said["scale"], self._before.default_scale(count)):
            scale = said["scale"]
        method = method_of({**said, "scale": scale})
        return {**said, "scale": method.resolved_scale(experts)}

    def way(self, how: str, after: Composition, found: Mapping[str, Found | None], own: Found | None) -> Way:
        """Whether to merge the experts again or to update by one.

        Args:
            how: what the user asked for.
            after: what the model is to consist of.
            found: the experts of the model that stay in it.
            own: the expert that is added or taken out.

        Raises:
            PlanError: neither is possible; everything that stands against it is said.
            ConfigError: ``how`` is none of the words.
        """
        if how not in get_args(How):
            raise ConfigError(f"how={how!r} does not exist{did_you_mean(str(how), get_args(How))}")
        removal = len(after.members) < len(self.composition.members)
        missing = [f"{name}: neither the expert nor a pack of it is found" for name, at in found.items() if at is None]
        packed = any(at.error for at in found.values() if at is not None)
        exact = self.factors(after) is not None
        against = list(self._against_update(own))
        alone = f"{self._before.name} does not treat experts one by one, so that "
        if removal and not exact and not against:
            against.append(f"{alone}none can be taken out alone")
        if how == "update" and against:
            raise PlanError(against)
        if how == "merge" and missing:
            raise PlanError([*missing, _REMEDY])
        if how != "auto":
            return "merge" if how == "merge" else "update"
        if not missing and not packed:
            return "merge"
        update = exact and not against
        if update and own is not None and not own.error:
            return "update"
        if not missing:
            return "merge"
        if update:
            return "update"
        if not against:
            against.append(
                f"{alone}all are needed; how=update would take the running mean of the models instead, which is "
                "another model"
            )
        raise PlanError([*missing, *against, _REMEDY])

    def _against_update(self, own: Found | None) -> Iterator[str]:
        """What stands against changing the model by one expert."""
        if self.record.get("rules") or self.record.get("then"):
            yield "the model was merged with rules or post-processors, which only a merge of all experts follows"
        if self.record.get("as_adapter"):
            yield "the merged model is an adapter, which only a merge of all experts gives"
        if isinstance(self._before, Emr):
            yield "emr's package belongs to all experts, so that all are needed"
        if own is None:
            yield "the expert to be taken out: neither it nor a pack of it is found"

    def factors(self, after: Composition) -> tuple[float, float] | None:
        """Factors on the merged model's change and on the expert's, beside its weight, that give what a merge gives.

        None where there are none: the method does not add what it makes of each expert alone.
        """
        if min(*self.composition.weights, *after.weights) < 0 or not sum(after.weights):
            return None  # what is averaged has other shares then, or none
        before = self._before.additive_factor(self._before.resolved_weights(len(self.composition.members)))
        method = self._method(after)
        now = method.additive_factor(method.resolved_weights(len(after.members)))
        return (now / before, now) if before and now is not None else None

    def merge(
        self,
        after: Composition,
        sources: Sequence[Source],
        target: Path,
        vocabulary: VocabularyPolicy | None,
        **others: Any,
    ) -> MergeReport:
        """Merges all experts again.

        Args:
            after: what the model is to consist of.
            sources: these experts.
            target: the output.
            vocabulary: policy, if it is not the recorded one.
            **others: options that leave no trace in the record.
        """

        def recorded(found: dict[str, Any]) -> dict[str, Any]:
            rows = found.get("vocabulary", {}).get("new_rows") or [""] * len(after.members)
            members = [
                replace(member, entry=entry, new_rows=tuple(numbers_of(own)))
                for member, entry, own in zip(after.members, found["experts"], rows, strict=True)
            ]
            return {**found, **self._composition(replace(after, members=members, approximations=()))}

        options = self._options(vocabulary, recorded, others)
        return merge_variants(self.base, sources, {target: self._method(after)}, options)[0]

    def update(
        self,
        after: Composition,
        step: Mapping[str, str],
        source: Source,
        target: Path,
        vocabulary: VocabularyPolicy | None,
        **others: Any,
    ) -> MergeReport:
        """Changes the model by one expert; arguments as of :meth:`merge`.

        Args:
            after: what the model is to consist of.
            step: ``{"add": NAME}`` or ``{"forget": NAME}``.
            source: the expert of that name.
            target: the output.
            vocabulary: policy, if it is not the recorded one.
            **others: options that leave no trace in the record.
        """
        verb, name = next(iter(step.items()))
        weight = after.member(name).weight if verb == "add" else -self.composition.member(name).weight
        total = sum(self.composition.weights)
        factors, extension = self.factors(after), dict[str, Any](step)
        if factors is None:
            if not total + weight > 0:
                raise ConfigError(f"weights that sum to {total + weight:g} give no running mean; pass another weight")
            factors = total / (total + weight), 1 / (total + weight)
            after = replace(after, approximations=[*after.approximations, f"{name} was added as a running mean"])
        elif self._before.name not in _LINEAR:
            extension["through"] = {key: value for key, value in after.method.items() if key != "scale"}
        members = after.members

        def recorded(found: dict[str, Any]) -> dict[str, Any]:
            before, own = found["experts"]
            before.pop("merged_from", None)  # all that counts of it is in the composition
            now = [replace(member, entry=member.entry or own) for member in members]
            words = [verb.replace("add", "extend"), before["path"], own["path"]]
            if verb == "forget":
                words[2] = name
            else:
                words += ["--name", name, f"--weight={weight!r}"]
            words += [f"--scale={after.method['scale']!r}", "--how=update", "-o", "OUTPUT"]
            return {
                **found,
                "command": shlex.join(["nemo-merge", *words]),
                **self._composition(replace(after, members=now)),
                "extension": extension,
            }

        options = self._options(vocabulary, recorded, others)
        for file in written_files(target, self._before):
            check_output(file, options.overwrite)  # before anything is computed
        method = Update(kept=factors[0], gain=factors[1], weights=(total, weight))
        with ExitStack() as stack:
            base, inputs = update_inputs(self.base, [self.path, source], extension, options, target.parent, stack)
            if base is not None:
                members = self._with_rows(members, base, inputs, options.vocabulary)
            return merge_variants(base, inputs, {target: method}, options)[0]

    def _method(self, after: Composition) -> Method:
        return method_of({**after.method, "weights": after.weights})

    def _options(
        self,
        vocabulary: VocabularyPolicy | None,
        recorded: Callable[[dict[str, Any]], dict[str, Any]],
        others: Mapping[str, Any],
    ) -> Options:
        policy = self.record.get("vocabulary", {}).get("policy", "strict")
        policy = vocabulary or ("union" if policy == "strict" else policy)
        return recorded_options(self.record, vocabulary=policy, as_recorded=recorded, **others)

    def _composition(self, after: Composition) -> dict[str, Any]:
        """For the record; packs that there are of the experts are noted."""
        members = [replace(member, kept_as=self.locator.kept(member)) for member in after.members]
        lacking = [
            f"{member.name} comes from a pack, which lacks {member.entry['pack']['error']:.1%} of its change"
            for member in members
            if member.entry["format"] == "pack" and member.entry["pack"]["error"]
        ]
        told = dict.fromkeys([*lacking, *after.approximations])
        return {"composition": plain(replace(after, members=members, approximations=list(told)).record())}

    def _with_rows(
        self, members: Sequence[Member], base: Checkpoint, inputs: Sequence[Checkpoint], policy: str
    ) -> list[Member]:
        """The experts with the rows that their new tokens have in the output of an update."""
        rows = tokens_after(base, inputs, policy)
        if not rows:
            return [replace(member, new_rows=()) for member in members]
        own = base.vocabulary()
        assert own is not None  # or there would be no rows
        with open_checkpoint(self.path) as merged:
            before = merged.vocabulary()
        found = []
        for member in members:
            vocabulary = None if member.entry else inputs[1].vocabulary()
            tokens = member.new_tokens(before) if before is not None else []
            if vocabulary is not None:
                tokens = own.lacks(vocabulary)
            found.append(replace(member, new_rows=tuple(sorted(rows[token] for token in tokens if token in rows))))
        return found
