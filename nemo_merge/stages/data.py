"""Stages 0 to 2: synthesise or fetch the corpora, write manifests, make and check cuts."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..corpora.mini import NOTICE, infeasible_for_ctc, prepare_cuts, prepare_ep_mini, synthesise
from ..errors import ConfigError, NemoMergeError
from .engine import Context
from .sets import CorpusSet, GivenSet, MiniSet, OwnSet, SpeechSet, SpeechSets

if TYPE_CHECKING:
    from lhotse import CutSet


class LeakError(NemoMergeError):
    """Data that would spoil an experiment: what is tested was heard in training."""

    exit_code = 1


def speech_sets(context: Context) -> SpeechSets:
    """The sets of the recipe."""
    return SpeechSets.read(context.config)


def cuts_path(context: Context, name: str, split: str) -> Path:
    """Cut manifest of one split of a set."""
    return speech_sets(context)[name].cuts_path(context, split)


def require_splits(context: Context, needed: Mapping[str, Collection[str]]) -> None:
    """Sees that sets have the splits that they are used for; stage 1 is done.

    Raises:
        ConfigError: some have not.
    """
    sets = speech_sets(context)
    lacking = {
        name: [split for split in splits if split not in sets[name].splits(context)] for name, splits in needed.items()
    }
    if problems := [f"{name} has no {' and no '.join(splits)}" for name, splits in lacking.items() if splits]:
        raise ConfigError(f"sets that lack what they are used for: {'; '.join(problems)}")


def notice(context: Context) -> str:
    """What every reader of the figures must know, if anything."""
    return NOTICE if speech_sets(context).mini else ""


def download(context: Context) -> None:
    """Stage 0: EP-mini is synthesised, other corpora are fetched or looked for."""
    found = speech_sets(context)
    for item in found.own:
        if isinstance(item, CorpusSet):
            context.say(f"{item.name}: {item.fetch(context)}")
        elif isinstance(item, GivenSet):
            item.check()
    if found.mini:
        context.say(NOTICE)
    sizes = {item.name: item.sizes for item in found.mini}
    for name, made in synthesise(context.datadir / "ep_mini", sizes, context.config["seed"], context.jobs):
        context.say(f"{name}: {'synthesised' if made else 'already there'}")


def prepare(context: Context) -> None:
    """Stage 1: Lhotse and NeMo manifests."""
    found = speech_sets(context)
    if found.mini:
        names = [item.name for item in found.mini]
        manifests = prepare_ep_mini(context.datadir / "ep_mini", context.datadir / "manifests", names)
        utterances = sum(len(split["recordings"]) for made in manifests.values() for split in made.values())
        context.say(f"{len(manifests)} sets of EP-mini, {utterances} utterances")
    for item in found.own:
        item.prepare(context)
        context.say(f"{item.name}: {', '.join(item.splits(context))}")


def cuts(context: Context) -> None:
    """Stage 2: cuts, and checks that no sentence or speaker is where it must not be."""
    found = speech_sets(context)
    folder = context.datadir / "cuts"
    folder.mkdir(parents=True, exist_ok=True)
    table = {}
    sentences: dict[str, set[str]] = defaultdict(set)
    for item, split in found.splits(context):
        made = _cuts(context, item, split)
        texts = {cut.supervisions[0].text for cut in made}
        if isinstance(item, MiniSet):
            sentences[split] |= texts
        hours = sum(cut.duration for cut in made) / 3600
        table[f"{item.name} {split}"] = {
            "utterances": len(made),
            "hours": round(hours, 3),
            "words": sum(map(len, map(str.split, texts))),
        }
    if shared := sentences["train"] & (sentences["test"] | sentences["dev"]):
        raise LeakError(
            f"{len(shared)} sentences are both in training and in test or development, e.g. {min(shared)!r}"
        )
    _check_speakers(found.mini)
    _check_utterances(context, found.own)
    (folder / "statistics.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    for row, values in table.items():
        context.say(f"{row}: {values['utterances']} utterances, {60 * values['hours']:.1f} minutes")


def corpus_files(context: Context) -> list[Path]:
    """What stage 0 leaves, the audio apart."""
    return [context.datadir / "ep_mini" / item.name / "utterances.jsonl" for item in speech_sets(context).mini]


def manifest_files(context: Context) -> list[Path]:
    """What stage 1 leaves."""
    found = speech_sets(context)
    kinds = ("recordings", "supervisions")
    synthetic = [
        context.datadir / "manifests" / f"{item.stem}_{kind}_{split}.jsonl.gz"
        for item in found.mini
        for split in item.splits(context)
        for kind in kinds
    ]
    return [*synthetic, *(path for item in found.own for path in item.prepared(context))]


def cut_files(context: Context) -> list[Path]:
    """What stage 2 leaves."""
    return [item.cuts_path(context, split) for item, split in speech_sets(context).splits(context)]


def _cuts(context: Context, item: SpeechSet, split: str) -> CutSet:
    """Writes the cuts of a split, without those that no CTC model can learn from."""
    path = item.cuts_path(context, split)
    if isinstance(item, OwnSet):
        made = item.cuts(context, split)
    else:
        made = prepare_cuts(context.datadir / "manifests", path.parent, item.name, split)
    bad = frozenset(infeasible_for_ctc(made)) if split == "train" or isinstance(item, MiniSet) else ()
    if bad:
        made = made.filter(lambda cut: cut.id not in bad).to_eager()
        context.say(f"{item.name} {split}: {len(bad)} utterances are too fast for CTC and are left out")
    if bad or isinstance(item, OwnSet):
        made.to_file(path)
    return made


def _check_speakers(found: Sequence[MiniSet]) -> None:
    grammars = [item.grammar for item in found]
    trained = {voice for grammar in grammars if grammar.role in ("base", "in_domain") for voice in grammar.voices}
    for grammar in grammars:
        if grammar.role == "out_of_domain" and (heard := trained & set(grammar.voices)):
            raise LeakError(f"{grammar.name}: its speakers {sorted(heard)} are heard in training")


def _check_utterances(context: Context, found: Sequence[OwnSet]) -> None:
    """Refuses recordings that are trained on and tested with; equal sentences are usual in speech and are allowed."""
    from lhotse import CutSet

    heard: dict[str, dict[tuple[str, float], str]] = {"train": {}, "test": {}}
    for item in found:
        for split in set(item.splits(context)) & heard.keys():
            for cut in CutSet.from_file(item.cuts_path(context, split)):
                if getattr(cut, "has_recording", False) and cut.recording.sources:
                    heard[split][(str(cut.recording.sources[0].source), round(cut.start, 2))] = item.name
    if shared := heard["train"].keys() & heard["test"].keys():
        source, start = min(shared)
        raise LeakError(
            f"{len(shared)} utterances are both in training and in test, e.g. {source} at {start} s, of "
            f"{heard['train'][source, start]} and {heard['test'][source, start]}"
        )
