"""The embedded corpus: the same audio for the same seed, made once, and manifests that a NeMo loader takes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from nemo_merge.corpora.mini import (
    Sizes,
    infeasible_for_ctc,
    prepare_cuts,
    prepare_ep_mini,
    read_utterances,
    synthesise,
)
from nemo_merge.corpora.mini.speech import SAMPLE_RATE, Voice, synthesiser

pytest.importorskip("espeakng_loader")
soundfile = pytest.importorskip("soundfile")

SIZES = {"telephone": Sizes(4, 1, 2), "code_switching": Sizes(3, 1, 1), "conversational": Sizes(2, 1, 1)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    assert dict(synthesise(folder, SIZES, seed=7, num_jobs=2)) == dict.fromkeys(SIZES, True)
    return folder


def fingerprints(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.flac"))}


def test_the_same_seed_gives_the_same_audio_in_any_company(corpus, tmp_path):
    dict(synthesise(tmp_path, {"telephone": SIZES["telephone"]}, seed=7))
    assert fingerprints(tmp_path / "telephone") == fingerprints(corpus / "telephone")
    dict(synthesise(tmp_path / "other", {"telephone": SIZES["telephone"]}, seed=8))
    assert fingerprints(tmp_path / "other") != fingerprints(corpus / "telephone")


def test_a_set_is_made_once_and_again_when_asked_for_otherwise(corpus, tmp_path):
    sizes = {"telephone": Sizes(1, 0, 0)}
    assert dict(synthesise(tmp_path, sizes)) == {"telephone": True}
    before = (tmp_path / "telephone" / "utterances.jsonl").stat().st_mtime_ns
    assert dict(synthesise(tmp_path, sizes)) == {"telephone": False}
    assert (tmp_path / "telephone" / "utterances.jsonl").stat().st_mtime_ns == before
    assert dict(synthesise(tmp_path, {"telephone": Sizes(2, 0, 0)})) == {"telephone": True}
    assert len(list(read_utterances(tmp_path / "telephone"))) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["telephone"]


def test_utterances_say_what_the_files_hold(corpus):
    for name, sizes in SIZES.items():
        utterances = list(read_utterances(corpus / name))
        for split in ("train", "dev", "test"):
            assert sum(item.split == split for item in utterances) == getattr(sizes, split)
        for utterance in utterances:
            samples, rate = soundfile.read(corpus / name / utterance.audio)
            assert (len(samples), rate) == (utterance.samples, SAMPLE_RATE)
            assert utterance.samples > 0.3 * SAMPLE_RATE
            assert 0.25 < np.abs(samples).max() < 0.95


def test_manifests_in_lhotse_and_nemo_form(corpus, tmp_path):
    manifests = prepare_ep_mini(corpus, tmp_path)
    assert {name: sorted(splits) for name, splits in manifests.items()} == {
        name: ["dev", "test", "train"] for name in SIZES
    }
    assert prepare_ep_mini(corpus, None, ["telephone"])["telephone"]["dev"]["recordings"]
    cuts = prepare_cuts(tmp_path, tmp_path, "code_switching", "train")
    (supervision,) = cuts[0].supervisions
    assert supervision.language == "pt-en"
    assert {language for language, *_ in supervision.custom["language_spans"]} == {"pt-PT", "en"}
    assert supervision.custom["role"] == "code_switching"
    audio = cuts[0].load_audio()
    assert audio.shape == (1, cuts[0].num_samples)
    rows = [json.loads(line) for line in (tmp_path / "ep-mini-telephone_test.json").read_text().splitlines()]
    assert len(rows) == 2
    assert all(Path(row["audio_filepath"]).is_file() and row["lang"] == "pt-PT" and row["text"] for row in rows)


def test_utterances_too_fast_for_ctc_are_found(corpus, tmp_path):
    prepare_ep_mini(corpus, tmp_path)
    cuts = prepare_cuts(tmp_path, tmp_path, "telephone", "train")
    assert infeasible_for_ctc(cuts) == []
    assert infeasible_for_ctc(cuts, frame_seconds=0.5) == [cut.id for cut in cuts]


def test_voices():
    engine = synthesiser()
    adult = engine.say("bom dia a todos", "pt", Voice("f2"))
    child = engine.say("bom dia a todos", "pt", Voice("f2", formant_shift=1.2))
    assert adult.dtype == np.float32
    assert len(child) == pytest.approx(len(adult), rel=0.1)  # slower speech, read faster
    for language, variant in (("pt", "nobody"), ("xx", "f2")):
        with pytest.raises(ValueError, match="has no voice"):
            engine.say("bom dia", language, Voice(variant))


def test_language_switching_changes_the_reading():
    engine = synthesiser()
    words = "though enough thorough"
    plain = engine.say(f"<speak>o {words}</speak>", "pt", Voice("f3"), ssml=True)
    switched = engine.say(f'<speak>o <voice xml:lang="en">{words}</voice></speak>', "pt", Voice("f3"), ssml=True)
    assert abs(len(plain) - len(switched)) > 0.05 * len(plain)


def test_what_a_killed_run_left_does_no_harm(tmp_path):
    """Its workers may live on for a while and write to their own folder."""
    left = tmp_path / ".telephone.1.partial"
    (left / "train").mkdir(parents=True)
    (left / "train" / "half.flac").write_bytes(b"fLaC")
    assert list(synthesise(tmp_path, {"telephone": Sizes(1, 0, 0)})) == [("telephone", True)]
    assert [path.name for path in tmp_path.iterdir()] == ["telephone"]
