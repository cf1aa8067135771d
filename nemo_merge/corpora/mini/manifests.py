"""Manifests of the embedded corpus: Lhotse recordings, supervisions and cuts, and NeMo's JSON lines."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from .build import SPLITS, Utterance, read_utterances
from .grammar import Grammar, load
from .speech import SAMPLE_RATE

if TYPE_CHECKING:
    from lhotse import CutSet, Recording, RecordingSet, SupervisionSegment, SupervisionSet

NOTICE = "EP-mini is synthetic and small: its error rates compare methods, they do not measure speech recognition."
ENCODER_FRAME_SECONDS = 0.04
"""Length of an encoder frame at 4 times subsampling of 10 ms features."""


def prepare_ep_mini(
    corpus_dir: str | Path, output_dir: str | Path | None = None, sets: Iterable[str] | None = None
) -> dict[str, dict[str, dict[str, RecordingSet | SupervisionSet]]]:
    """Lhotse manifests of synthesised sets, as a Lhotse recipe makes them.

    Args:
        corpus_dir: folder that :func:`~nemo_merge.corpora.mini.synthesise` filled.
        output_dir: where to write ``ep-mini-<set>_<type>_<split>.jsonl.gz`` and NeMo manifests; nowhere by default.
        sets: names of sets; all that are there by default.

    Returns:
        ``{set: {split: {"recordings": ..., "supervisions": ...}}}``. Supervisions carry the language (a BCP-47 tag;
        ``pt-en`` where it is switched), the speaker, and in ``custom`` the domain, its role, the original text and
        the language spans.

    Raises:
        FileNotFoundError: a set has not been synthesised.
    """
    from lhotse import RecordingSet, SupervisionSet, fix_manifests, validate_recordings_and_supervisions

    corpus_dir = Path(corpus_dir)
    names = sorted(path.parent.name for path in corpus_dir.glob("*/utterances.jsonl")) if sets is None else list(sets)
    manifests: dict[str, dict[str, dict[str, RecordingSet | SupervisionSet]]] = {}
    for name in names:
        by_split: dict[str, list[Utterance]] = defaultdict(list)
        for utterance in read_utterances(corpus_dir / name):
            by_split[utterance.split].append(utterance)
        manifests[name] = {}
        for split in SPLITS:
            if not by_split[split]:
                continue
            recordings = RecordingSet.from_recordings(_recording(u, corpus_dir / name) for u in by_split[split])
            supervisions = SupervisionSet.from_segments(_supervision(u, load(name)) for u in by_split[split])
            recordings, supervisions = fix_manifests(recordings, supervisions)
            validate_recordings_and_supervisions(recordings, supervisions)
            manifests[name][split] = {"recordings": recordings, "supervisions": supervisions}
            if output_dir is not None:
                folder = Path(output_dir)
                folder.mkdir(parents=True, exist_ok=True)
                recordings.to_file(folder / f"ep-mini-{name}_recordings_{split}.jsonl.gz")
                supervisions.to_file(folder / f"ep-mini-{name}_supervisions_{split}.jsonl.gz")
                _write_nemo(folder / f"ep-mini-{name}_{split}.json", by_split[split], corpus_dir / name, load(name))
    return manifests


def prepare_cuts(manifest_dir: str | Path, output_dir: str | Path, name: str, split: str) -> CutSet:
    """Cuts of one split, written as ``ep-mini-<set>_cuts_<split>.jsonl.gz`` and validated."""
    from lhotse import CutSet, load_manifest

    folder = Path(manifest_dir)
    cuts = CutSet.from_manifests(
        recordings=load_manifest(folder / f"ep-mini-{name}_recordings_{split}.jsonl.gz"),
        supervisions=load_manifest(folder / f"ep-mini-{name}_supervisions_{split}.jsonl.gz"),
    ).to_eager()
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    cuts.to_file(Path(output_dir) / f"ep-mini-{name}_cuts_{split}.jsonl.gz")
    return cuts


def infeasible_for_ctc(cuts: CutSet, frame_seconds: float = ENCODER_FRAME_SECONDS) -> list[str]:
    """Ids of cuts with fewer encoder frames than CTC needs: one per character, and one between equal neighbours.

    Such a cut has an infinite loss, which training frameworks set to zero: it teaches nothing and hides that it does.
    """
    bad = []
    for cut in cuts:
        text = cut.supervisions[0].text or ""
        needed = len(text) + sum(a == b for a, b in pairwise(text))
        if cut.duration / frame_seconds < needed:
            bad.append(cut.id)
    return bad


def _recording(utterance: Utterance, folder: Path) -> Recording:
    from lhotse import AudioSource, Recording

    path = str((folder / utterance.audio).resolve())
    return Recording(
        id=utterance.id,
        sources=[AudioSource(type="file", channels=[0], source=path)],
        sampling_rate=SAMPLE_RATE,
        num_samples=utterance.samples,
        duration=utterance.samples / SAMPLE_RATE,
    )


def _supervision(utterance: Utterance, grammar: Grammar) -> SupervisionSegment:
    from lhotse import SupervisionSegment

    others = sorted({language for language, _, _ in utterance.language_spans} - {grammar.language})
    return SupervisionSegment(
        id=utterance.id,
        recording_id=utterance.id,
        start=0.0,
        duration=utterance.samples / SAMPLE_RATE,
        text=utterance.text,
        language="-".join([grammar.language.split("-")[0], *others]) if others else grammar.language,
        speaker=utterance.speaker,
        custom={
            "corpus": "ep-mini",
            "domain": grammar.name,
            "role": grammar.role,
            "orig_text": utterance.text,
            "language_spans": [list(span) for span in utterance.language_spans],
            **_translation(utterance, grammar),
        },
    )


def _translation(utterance: Utterance, grammar: Grammar) -> dict[str, str | None]:
    """As the recipes of corpora for speech translation have it."""
    if utterance.translation is None:
        return {}
    return {"translation": utterance.translation, "translation_language": grammar.translation_language}


def _write_nemo(path: Path, utterances: Iterable[Utterance], folder: Path, grammar: Grammar) -> None:
    with open(path, "w", encoding="utf-8") as lines:
        for utterance in utterances:
            row = {
                "id": utterance.id,
                "audio_filepath": str((folder / utterance.audio).resolve()),
                "duration": utterance.samples / SAMPLE_RATE,
                "text": utterance.text,
                "lang": grammar.language,
                "domain": grammar.name,
                **_translation(utterance, grammar),
            }
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
