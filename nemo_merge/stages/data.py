"""Stages 0 to 2: synthesise the corpus, write manifests, make and check cuts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ..corpora.mini import (
    NOTICE,
    SPLITS,
    Sizes,
    infeasible_for_ctc,
    load,
    prepare_cuts,
    prepare_ep_mini,
    synthesise,
)
from ..errors import NemoMergeError
from .engine import Context


class LeakError(NemoMergeError):
    """Data that would spoil an experiment: what is tested was heard in training."""

    exit_code = 1


def download(context: Context) -> None:
    """Stage 0: nothing to download, the corpus is synthesised."""
    context.say(NOTICE)
    sizes = {name: Sizes(**values) for name, values in context.config["corpus"].items()}
    for name, made in synthesise(context.datadir / "ep_mini", sizes, context.config["seed"], context.jobs):
        context.say(f"{name}: {'synthesised' if made else 'already there'}")


def prepare(context: Context) -> None:
    """Stage 1: Lhotse and NeMo manifests."""
    manifests = prepare_ep_mini(context.datadir / "ep_mini", context.datadir / "manifests", context.config["corpus"])
    utterances = sum(len(split["recordings"]) for sets in manifests.values() for split in sets.values())
    context.say(f"{len(manifests)} sets, {utterances} utterances")


def cuts(context: Context) -> None:
    """Stage 2: cuts, and checks that no sentence or speaker is where it must not be."""
    folder = context.datadir / "cuts"
    table = {}
    sentences: dict[str, set[str]] = {split: set() for split in SPLITS}
    for name, split in _splits(context):
        made = prepare_cuts(context.datadir / "manifests", folder, name, split)
        if bad := infeasible_for_ctc(made):
            made = made.filter(lambda cut, bad=frozenset(bad): cut.id not in bad).to_eager()
            made.to_file(folder / f"ep-mini-{name}_cuts_{split}.jsonl.gz")
            context.say(f"{name} {split}: {len(bad)} utterances are too fast for CTC and are left out")
        texts = {cut.supervisions[0].text for cut in made}
        sentences[split] |= texts
        hours = sum(cut.duration for cut in made) / 3600
        table[f"{name} {split}"] = {
            "utterances": len(made),
            "hours": round(hours, 3),
            "words": sum(map(len, map(str.split, texts))),
        }
    if shared := (sentences["train"] & sentences["test"]) | (sentences["train"] & sentences["dev"]):
        raise LeakError(
            f"{len(shared)} sentences are both in training and in test or development, e.g. {min(shared)!r}"
        )
    _check_speakers(context)
    (folder / "statistics.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    for row, values in table.items():
        context.say(f"{row}: {values['utterances']} utterances, {60 * values['hours']:.1f} minutes")


def corpus_files(context: Context) -> list[Path]:
    """What stage 0 leaves, the audio apart."""
    return [context.datadir / "ep_mini" / name / "utterances.jsonl" for name in context.config["corpus"]]


def manifest_files(context: Context) -> list[Path]:
    """What stage 1 leaves."""
    kinds = ("recordings", "supervisions")
    names = [f"ep-mini-{name}_{kind}_{split}.jsonl.gz" for name, split in _splits(context) for kind in kinds]
    return [context.datadir / "manifests" / name for name in names]


def cut_files(context: Context) -> list[Path]:
    """What stage 2 leaves."""
    return [cuts_path(context, name, split) for name, split in _splits(context)]


def cuts_path(context: Context, name: str, split: str) -> Path:
    """Cut manifest of one split of a set."""
    return context.datadir / "cuts" / f"ep-mini-{name}_cuts_{split}.jsonl.gz"


def _splits(context: Context) -> Iterator[tuple[str, str]]:
    for name, sizes in context.config["corpus"].items():
        yield from ((name, split) for split in SPLITS if getattr(Sizes(**sizes), split))


def _check_speakers(context: Context) -> None:
    grammars = [load(name) for name in context.config["corpus"]]
    trained = {voice for grammar in grammars if grammar.role in ("base", "in_domain") for voice in grammar.voices}
    for grammar in grammars:
        if grammar.role == "out_of_domain" and (heard := trained & set(grammar.voices)):
            raise LeakError(f"{grammar.name}: its speakers {sorted(heard)} are heard in training")
