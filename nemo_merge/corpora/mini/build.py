"""Synthesises the embedded corpus: audio and one line of metadata per utterance, the same for the same seed."""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..splits import split_of
from .conditions import babble_of
from .grammar import Grammar, Sentence, load
from .speech import SAMPLE_RATE, Voice, synthesiser

VERSION = 1  # raise when the same seed gives other audio: cached sets are then made anew
SPLITS = ("train", "dev", "test")
_BABBLE_VOICES = ("m1", "f1", "m5", "f5", "m7", "f2")


@dataclass(frozen=True)
class Sizes:
    """Number of utterances in each split of a set."""

    train: int = 600
    dev: int = 60
    test: int = 120


@dataclass(frozen=True)
class Utterance:
    """One synthesised utterance as ``utterances.jsonl`` holds it; ``audio`` is relative to the set's folder.

    ``language_spans`` are ``(BCP-47 tag, start, end)`` with character offsets into ``text``; ``translation`` is there
    if the set has translations.
    """

    id: str
    split: str
    audio: str
    samples: int
    text: str
    language_spans: tuple[tuple[str, int, int], ...]
    speaker: str
    translation: str | None = None


def synthesise(
    output: str | Path, sizes: Mapping[str, Sizes], seed: int = 0, num_jobs: int = 1
) -> Iterator[tuple[str, bool]]:
    """Makes the named sets under ``output``, one folder each; a set that is already there is left as it is.

    espeak-ng carries state from one utterance to the next, so every set is made in order in a process of its own:
    the result depends on the seed alone, not on ``num_jobs`` or on which other sets are made.

    Args:
        output: folder of the corpus.
        sizes: what to make, by set name (see :data:`~.grammar.NAMES`).
        seed: same seed, same corpus.
        num_jobs: sets made side by side.

    Yields:
        ``(set name, whether it was made now)`` as each set is finished.
    """
    tasks = [(str(output), name, size, seed) for name, size in sizes.items()]
    missing = [task for task in tasks if not _is_made(*task)]
    missing.sort(
        key=lambda task: -sum(asdict(task[2]).values())
    )  # the largest first, so that none is left over at the end
    yield from ((name, False) for _, name, _, _ in tasks if name not in {task[1] for task in missing})
    if missing:
        # Workers are replaced after each task because the engine's state must be fresh for every set.
        context = multiprocessing.get_context("spawn")
        with context.Pool(min(num_jobs, len(missing)), maxtasksperchild=1) as pool:
            for name in pool.imap_unordered(_make_set, missing):
                yield name, True


def read_utterances(folder: str | Path) -> Iterator[Utterance]:
    """The utterances of one set, in the order in which they were made."""
    with open(Path(folder) / "utterances.jsonl", encoding="utf-8") as lines:
        for line in lines:
            values = json.loads(line)
            values["language_spans"] = tuple(tuple(span) for span in values["language_spans"])
            yield Utterance(**values)


def _is_made(output: str, name: str, sizes: Sizes, seed: int) -> bool:
    marker = Path(output) / name / "made.json"
    return marker.is_file() and json.loads(marker.read_text()) == _fingerprint(name, sizes, seed)


def _fingerprint(name: str, sizes: Sizes, seed: int) -> dict[str, object]:
    grammar = hashlib.sha256(repr(load(name)).encode()).hexdigest()
    return {"version": VERSION, "seed": seed, "grammar": grammar, **asdict(sizes)}


def _make_set(task: tuple[str, str, Sizes, int]) -> str:
    import soundfile

    output, name, sizes, seed = task
    grammar = load(name)
    folder, partial = Path(output) / name, Path(output) / f".{name}.{os.getpid()}.partial"
    # A worker whose parent was killed may still write to its own; without the folder it ends.
    for left in Path(output).glob(f".{name}.*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    babble = _babble(grammar, seed) if any(condition.babble for condition in grammar.conditions) else None
    with open(partial / "utterances.jsonl", "w", encoding="utf-8") as metadata:
        for index, (split, sentence) in enumerate(_choose(grammar.sentences(seed), sizes)):
            rng = np.random.default_rng([seed, index, *name.encode()])
            voice = _draw_voice(grammar, rng)
            speech = synthesiser().say(
                sentence.ssml(grammar.espeak_language), grammar.espeak_language, voice, ssml=True
            )
            condition = grammar.conditions[int(rng.integers(len(grammar.conditions)))]
            samples = condition.apply(speech, rng, babble)
            identifier = f"{name}-{split}-{index:05d}"
            audio = Path(split) / f"{identifier}.flac"
            (partial / split).mkdir(exist_ok=True)
            soundfile.write(partial / audio, samples, SAMPLE_RATE, subtype="PCM_16")
            utterance = Utterance(
                identifier,
                split,
                str(audio),
                len(samples),
                sentence.text,
                _tagged(sentence, grammar),
                f"{name}-{voice.variant}",
                sentence.translation,
            )
            metadata.write(json.dumps(asdict(utterance), ensure_ascii=False) + "\n")
    (partial / "made.json").write_text(json.dumps(_fingerprint(name, sizes, seed)))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return name


def _choose(sentences: Iterable[Sentence], sizes: Sizes) -> Iterator[tuple[str, Sentence]]:
    """Takes sentences until every split is full.

    The split is a property of the sentence, or of what it means: one that is held out in one language is held out in
    every other that has the same translation.
    """
    wanted = {split: getattr(sizes, split) for split in SPLITS}
    for sentence in sentences:
        split = split_of(sentence.translation or sentence.text)
        if wanted[split] > 0:
            wanted[split] -= 1
            yield split, sentence
        if not any(wanted.values()):
            return


def _tagged(sentence: Sentence, grammar: Grammar) -> tuple[tuple[str, int, int], ...]:
    """The sentence's spans with the set's BCP-47 tag in place of espeak-ng's name of its language."""
    main = grammar.espeak_language
    return tuple((grammar.language if name == main else name, start, end) for name, start, end in sentence.spans)


def _draw_voice(grammar: Grammar, rng: np.random.Generator) -> Voice:
    return Voice(
        variant=grammar.voices[int(rng.integers(len(grammar.voices)))],
        rate=round(rng.uniform(*grammar.rate)),
        pitch=round(rng.uniform(*grammar.pitch)),
        pitch_range=round(rng.uniform(*grammar.pitch_range)),
        formant_shift=float(rng.uniform(*grammar.formant_shift)),
    )


def _babble(grammar: Grammar, seed: int) -> np.ndarray:
    sentences = iter(grammar.sentences(seed + 1))
    recordings = []
    for variant in _BABBLE_VOICES:
        text = " ".join(sentence.text for sentence in itertools.islice(sentences, 3))
        recordings.append(synthesiser().say(text, grammar.espeak_language, Voice(variant)))
    return babble_of(recordings)
