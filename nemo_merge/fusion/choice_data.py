"""The audio and the labels that upstreams are compared on."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AudioError, ConfigError, CorpusError
from ..training.cut_labels import label_of
from .probing import deal_folds

BATCH_SECONDS = 60.0


def read_cuts(cuts: Any) -> list[Any]:
    """The cuts of a set, or of its file, one or more."""
    try:
        from lhotse import CutSet
    except ImportError as error:
        raise ConfigError("comparing encoders needs Lhotse; pip install 'nemo-merge[lhotse]'") from error
    if isinstance(cuts, (str, Path)):
        if not Path(cuts).is_file():
            raise CorpusError(f"{cuts}: no such file; give Lhotse cuts")
        cuts = CutSet.from_file(cuts)
    found = list(cuts)
    if not found:
        raise AudioError("there are no cuts; give some audio to hear")
    return found


def draw(cuts: Sequence[Any], label: Any, seconds: float, seed: int) -> tuple[list[Any], list[Hashable]]:
    """Some utterances of each class in turn, and their classes, in the order of the cuts."""
    by_class: dict[Hashable, list[int]] = {}
    for index, cut in enumerate(cuts):
        by_class.setdefault(label_of(cut, label), []).append(index)
    if len(by_class) < 2:
        raise CorpusError(
            f"all {len(cuts)} cuts are of one class, {next(iter(by_class))!r}; probes tell two or more apart"
        )
    rng = np.random.default_rng(seed)
    waiting = [[places[item] for item in rng.permutation(len(places))] for places in by_class.values()]
    taken: list[int] = []
    heard = 0.0
    while any(waiting) and heard < seconds:
        for places in waiting:
            if places and (heard < seconds or len(taken) < 2 * len(waiting)):
                taken.append(places.pop())
                heard += cuts[taken[-1]].duration
    taken.sort()
    labels = [label_of(cuts[index], label) for index in taken]
    for item in by_class:
        if (count := labels.count(item)) < 2:
            raise CorpusError(
                f"class {item!r} has {count} of the {len(taken)} utterances that are heard, and 2 are needed; leave it "
                "out, or give more seconds"
            )
    return [cuts[index] for index in taken], labels


def folds_of(
    cuts: Sequence[Any], labels: Sequence[Hashable], label: Any, seed: int
) -> tuple[np.ndarray, list[Hashable] | None]:
    """Folds, with the speakers that they keep together, if they do."""
    speakers: list[Hashable] = [next((item.speaker for item in cut.supervisions), None) for cut in cuts]
    if label != "speaker" and None not in speakers:
        folds = deal_folds(labels, speakers, seed)
        spread = [
            len({int(fold) for fold, own in zip(folds, labels, strict=True) if own == item}) for item in set(labels)
        ]
        if min(spread) > 1:
            return folds, speakers
    return deal_folds(labels, range(len(cuts)), seed), None


def batches(cuts: Sequence[Any]) -> Iterator[list[Any]]:
    """Cuts that make up to a minute together, as long as the longest of them each."""
    batch: list[Any] = []
    for cut in cuts:
        if batch and (len(batch) + 1) * max(item.duration for item in [*batch, cut]) > BATCH_SECONDS:
            yield batch
            batch = []
        batch.append(cut)
    yield batch
