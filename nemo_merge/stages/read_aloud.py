"""Speech to train a base on where little was recorded: voices of espeak-ng read pieces of training transcripts."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ..corpora.mini.conditions import Condition
from ..corpora.mini.manifests import infeasible_for_ctc
from ..corpora.mini.speech import SAMPLE_RATE, Voice, synthesiser
from ..errors import ConfigError
from .engine import digest, identity

_CONDITIONS = (
    Condition(channel="telephone"),
    Condition(channel="telephone", noise="white", snr=(15, 30)),
    Condition(noise="pink", snr=(15, 30)),
)


@dataclass(frozen=True)
class Reading:
    """What is read aloud.

    Attributes:
        texts: cuts whose transcripts are read; those of the training split, or the test set is known beforehand.
        voice: espeak-ng language, for example ``it`` or ``fr-fr``.
        utterances: how many.
        words: least and most words of an utterance; they are taken from a transcript in a row.
        speakers: variants of espeak-ng's voice.
        seed: of the pieces, the speakers and the recording conditions.
    """

    texts: str
    voice: str
    utterances: int
    words: tuple[int, int] = (2, 9)
    speakers: Sequence[str] = field(default=("m1", "m2", "m3", "m4", "m7", "f1", "f2", "f3", "f4", "f5"))
    seed: int = 0


def read_aloud(reading: Reading, folder: Path, cuts: Path) -> bool:
    """Synthesises the utterances into ``folder`` and writes their cuts, unless that was done before.

    Returns:
        Whether it was done now.

    Raises:
        ConfigError: there are no transcripts of so few words.
    """
    marker = folder / "made.json"
    made = {"reading": digest(asdict(reading)), "texts": identity(reading.texts)}
    if cuts.is_file() and marker.is_file() and json.loads(marker.read_text()) == made:
        return False
    # A fresh engine for every set: espeak-ng carries state from one utterance to the next.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(_make, (reading, folder, cuts))
    marker.write_text(json.dumps(made), encoding="utf-8")
    return True


def pieces(transcripts: Sequence[str], words: tuple[int, int], rng: np.random.Generator) -> Iterator[str]:
    """Endless runs of words from random transcripts.

    Raises:
        ConfigError: no transcript has the least number of words.
    """
    least, most = words
    long_enough = sorted({text for text in transcripts if len(text.split()) >= least})
    if not long_enough:
        raise ConfigError(f"no transcript has {least} words to read aloud")
    while True:
        said = long_enough[rng.integers(len(long_enough))].split()
        length = int(rng.integers(least, min(most, len(said)) + 1))
        start = int(rng.integers(len(said) - length + 1))
        yield " ".join(said[start : start + length])


def _make(reading: Reading, folder: Path, output: Path) -> None:
    import soundfile
    from lhotse import CutSet, Recording, SupervisionSegment, load_manifest

    folder.mkdir(parents=True, exist_ok=True)
    transcripts = [cut.supervisions[0].text or "" for cut in load_manifest(reading.texts)]
    rng = np.random.default_rng([reading.seed, *folder.name.encode()])
    cuts = []
    for index, text in zip(range(reading.utterances), pieces(transcripts, reading.words, rng), strict=False):
        voice = Voice(
            variant=reading.speakers[int(rng.integers(len(reading.speakers)))],
            rate=int(rng.integers(130, 180)),
            pitch=int(rng.integers(30, 70)),
            formant_shift=float(rng.uniform(0.95, 1.1)),
        )
        condition = _CONDITIONS[int(rng.integers(len(_CONDITIONS)))]
        samples = condition.apply(synthesiser().say(text, reading.voice, voice), rng)
        path = folder / f"{folder.name}-{index:05d}.flac"
        soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
        recording = Recording.from_file(path, recording_id=path.stem)
        cut = recording.to_cut()
        cut.supervisions = [
            SupervisionSegment(
                path.stem, path.stem, 0.0, recording.duration, text=text, language=reading.voice, speaker=voice.variant
            )
        ]
        cuts.append(cut)
    made = CutSet.from_cuts(cuts)
    bad = frozenset(infeasible_for_ctc(made))
    output.parent.mkdir(parents=True, exist_ok=True)
    made.filter(lambda cut: cut.id not in bad).to_eager().to_file(output)
